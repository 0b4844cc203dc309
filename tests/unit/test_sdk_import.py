"""``import lighten`` costs next to nothing."""

import subprocess
import sys

import pytest

import lighten


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_is_quick_and_brings_no_library_in() -> None:
    code = (
        "import time; t = time.perf_counter(); import lighten; t = time.perf_counter() - t\n"
        "import sys\n"
        "print(t, [n for n in ('grpc', 'google.protobuf', 'yaml', 'typer', 'rich') "
        "if n in sys.modules])"
    )
    seconds, _, loaded = python(code).strip().partition(" ")

    assert loaded == "[]"
    assert float(seconds) < 0.3


def test_the_sdk_needs_neither_cli_nor_server_libraries() -> None:
    code = (
        "import lighten; lighten.Client; lighten.aio.Client\n"
        "import sys\n"
        "print([n for n in ('typer', 'rich', 'torch', 'numpy', 'onnx', 'lighten.torch', "
        "'lighten_service') if n in sys.modules])"
    )
    assert python(code).strip() == "[]"


def test_without_the_extra_lighten_torch_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import lighten\n"
        "try:\n    lighten.torch\nexcept ImportError as error:\n    print(error)"
    )
    assert "pip install 'lighten[torch]'" in python(code)


def test_every_public_name_is_there() -> None:
    for name in lighten.__all__:
        assert getattr(lighten, name) is not None
    assert dir(lighten) == sorted(lighten.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        lighten.Klient  # noqa: B018
