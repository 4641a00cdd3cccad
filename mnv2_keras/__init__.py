"""MobileNetV2 in TensorFlow and Keras 3 that computes what Google's TF-Slim computes, within float32 rounding.

Importing the package is fast: TensorFlow and Keras are imported with the first name that needs them.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "analysis": ["analyze", "analyze_deeplab", "analyze_ssdlite", "summary_table"],
    "architecture": ["TABLE_2", "Block", "Plan", "Row", "make_divisible", "make_plan"],
    "architecture.detector": ["DetectorPlan", "make_detector_plan"],
    "architecture.segmenter": ["SegmenterPlan", "make_segmenter_plan"],
    "networks.endpoints": ["blocks", "endpoints", "feature_extractor", "feature_info", "freeze"],
    "networks.classifier": ["build_mobilenetv2"],
    "networks.segmenter": ["build_deeplabv3_mobilenetv2"],
    "inference.detector": ["Detection", "Detections", "Detector"],
    "inference.segmenter": ["Segmenter"],
    "inference.classifier": ["Classification", "Classifier"],
    "export.detection": ["export_detector"],
    "export.segmentation": ["export_segmenter"],
    "export.litert": ["export_litert"],
    "export.options": ["Quantization"],
    "tflite": ["add_metadata", "read_metadata"],
    "export.report": ["ExportReport", "inspect_litert"],
    "export.quantization_aware": ["quantization_aware"],
    "networks.detector": ["build_ssdlite_mobilenetv2"],
    "boxes": ["ssd_anchors"],
    "detection": ["postprocess_detections", "preprocess_detection_image"],
    "convert.transfer": ["Transfer"],
    "convert.receipt": ["Receipt"],
    "conversion": ["convert_checkpoint", "open_model", "verify_checkpoint", "verify_model"],
    "weights": ["load_checkpoint", "save_checkpoint", "save_model"],
    "fetch": ["fetch_checkpoint"],
    "images": ["ImageError", "find_images", "read_image"],
    "labels": ["Prediction", "coco_labels", "decode_predictions", "imagenet_labels", "voc_labels"],
    "preprocessing": ["normalize_image", "preprocess_image"],
    "hub": ["CheckpointInfo", "checkpoint_info"],
    "registry": ["CheckpointRecord", "get_checkpoint", "list_checkpoints", "register_checkpoint"],
    "data.classification": ["Examples", "read_examples", "read_splits"],
    "evaluation.classification": ["Evaluation", "evaluate"],
    "evaluation.coco": ["evaluate_coco"],
    "evaluation.detection": ["evaluate_detector"],
    "evaluation.segmentation": ["ConfusionMatrix", "evaluate_segmenter"],
    "inference.cluster": ["ClusterRun", "predict_on_cluster"],
    "bundled": ["digits_network", "sample_digits", "bundled_file"],
    "training.detection": ["DetectionRecipe", "train_detector"],
    "training.finetune": ["Finetuned", "finetune", "unfreeze"],
    "training.linear_probe": ["Probe", "linear_probe", "pooled_features"],
    "training.classification": ["Run", "train"],
    "training.fit": ["Progress"],
    "training.optimizer": ["MovingAverages", "SlimRMSprop"],
    "training.recipes": ["RECIPES", "Recipe", "recipe_named"],
    "training.segmentation": ["SegmentationRecipe", "train_segmenter"],
    "training.state": ["DivergedError", "WorkerLostError"],
}
#: Old public name to new one. Old names work in this release, with a DeprecationWarning.
_RENAMED = {"Diverged": "DivergedError", "WorkerLost": "WorkerLostError", "shipped_file": "bundled_file"}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str):
    if name == "analysis":  # a module of which users call functions: mnv2_keras.analysis.table_3()
        return importlib.import_module(f"{__name__}.analysis")
    if name in _RENAMED:
        from mnv2_keras.deprecation import warn_renamed

        warn_renamed(f"mnv2_keras.{name}", f"mnv2_keras.{_RENAMED[name]}")
        return getattr(importlib.import_module(__name__), _RENAMED[name])
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
