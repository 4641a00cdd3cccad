"""`mnv2 demo`: the main job from end to end, with nothing but the package."""

from mnv2_keras.cli.console import out, working


def demo() -> None:
    """Build, write a TF-Slim checkpoint, convert it back, verify against the genuine program, classify. No network.

    Exits with 1 when a proof fails.
    """
    import typer
    from rich.text import Text

    with working("importing TensorFlow"):
        from mnv2_keras.demonstration import demonstrate
    proven = True
    for fact in demonstrate():
        proven &= fact.proven
        out.print(
            Text("ok  ", "bold green") if fact.proven else Text("NOT ", "bold red"), fact.text, highlight=False, soft_wrap=True
        )
    if not proven:
        raise typer.Exit(1)
    out.print(Text("Next:", "bold"), "mnv2 list; mnv2 verify ARCHIVE; mnv2 predict PHOTO --weights ARCHIVE", highlight=False)
