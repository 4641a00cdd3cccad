"""Options that several commands have: renamed ones still work, values are read or refused."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from mnv2_keras.cli.options import image_size, numbers, renamed_options, unique_stems


@pytest.fixture
def command():
    """A command whose options `--plot`, `--folder` and `--all` had other names."""
    app = typer.Typer()

    @app.command()
    @renamed_options(picture="plot", state_folder="folder", full="all_")
    def command(
        plot: Annotated[Path | None, typer.Option("-p", "--plot", help="Draw here.")] = None,
        folder: Annotated[list[str] | None, typer.Option(help="Keep it here.")] = None,
        all_: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    ) -> None:
        """Print the values."""
        typer.echo(f"{plot} {folder} {all_}")

    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_new_names_work_without_a_warning(command):
    result = command("-p", "a.png", "--folder", "b", "--all")
    assert (result.stdout, result.stderr) == ("a.png ['b'] True\n", "")
    assert command().stdout == "None None False\n"


def test_an_old_name_works_and_warns_on_stderr(command):
    result = command("--picture", "a.png", "--state-folder", "b", "--full")
    assert result.stdout == "a.png ['b'] True\n"
    assert "--picture is called --plot now; the old name goes away in the next release." in result.stderr
    assert "--full is called --all now" in result.stderr


def test_help_shows_only_the_new_names(command):
    text = command("--help").output
    assert "--plot" in text
    assert "--picture" not in text


def test_old_and_new_name_together_are_refused(command):
    with pytest.raises(ValueError, match="--picture is the old name of --plot: give only --plot"):
        raise command("--picture", "a.png", "--plot", "b.png").exception


def test_only_options_can_be_renamed():
    def command(data: Annotated[str, typer.Argument()] = "") -> None:
        pass

    with pytest.raises(TypeError, match="data is no option"):
        renamed_options(folder="data")(command)


def test_image_size_is_height_and_width():
    assert image_size("96x160") == (96, 160)
    assert image_size("224") == (224, 224)
    assert image_size(None) is None
    with pytest.raises(ValueError, match="--resolution is 'big': expected a number of pixels"):
        image_size("big")


def test_numbers_are_read_or_refused():
    assert numbers("0.75,1,1.25") == (0.75, 1, 1.25)
    with pytest.raises(ValueError, match="no list of numbers"):
        numbers("a")


def test_equal_file_names_get_different_stems():
    assert unique_stems([Path("x/a.png"), Path("y/a.jpg"), Path("b.png")]) == ["a", "a-2", "b"]
    stems = unique_stems([Path("a.png"), Path("a.jpg"), Path("a-2.png"), Path("a.bmp")])
    assert len(set(stems)) == 4
