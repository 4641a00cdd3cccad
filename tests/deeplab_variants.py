"""The segmenters that the genuine program was run as: those of the goldens, and the trained archives."""

OPTIONS = {
    "os16": {},
    "os8": {"output_stride": 8},
    "dm05_os16": {"alpha": 0.5},
    "dm05_os8": {"alpha": 0.5, "output_stride": 8},
    "aspp": {"aspp_rates": (6, 12, 18)},
    "decoder": {"aspp_rates": [6, 12, 18], "decoder": True},
    "os32": {"output_stride": 32},
    "os32_bare": {"output_stride": 32, "head": False},
}

#: By the goldens' own names.
ARCHIVES = {"os16": "deeplabv3_mnv2_pascal_train_aug_2018_01_29", "dm05": "deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01"}
