"""The stub says what the compiled module has, and nothing is typed `Any`."""

import ast
import inspect
from pathlib import Path

import nats_bridge
from nats_bridge import _native, aio  # pyright: ignore[reportPrivateUsage]
from server import WORKSPACE

PACKAGE = Path(nats_bridge.__file__).parent


def stub_classes() -> dict[str, ast.ClassDef]:
    stub = ast.parse((PACKAGE / "_native.pyi").read_text())
    return {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}


def stub_functions() -> dict[str, ast.FunctionDef]:
    stub = ast.parse((PACKAGE / "_native.pyi").read_text())
    return {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}


def public(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_the_stub_has_the_classes_and_members_of_the_compiled_module() -> None:
    classes = stub_classes()
    assert set(classes) | set(stub_functions()) == public(dir(_native))
    for name, node in classes.items():
        native: object = getattr(_native, name)
        members = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
        assert public(list(members)) == public(dir(native)), name


def test_the_stub_has_the_parameters_of_the_compiled_module() -> None:
    for name, node in stub_classes().items():
        for member in node.body:
            native: object = getattr(getattr(_native, name), member.name, None) if isinstance(member, ast.FunctionDef) else None
            if not isinstance(member, ast.FunctionDef) or member.name.startswith("_") or not callable(native):
                continue
            stub = [argument.arg for argument in member.args.args]
            assert stub == list(inspect.signature(native).parameters), f"{name}.{member.name}"
    for name, node in stub_functions().items():
        native = getattr(_native, name)
        assert callable(native)
        assert [argument.arg for argument in node.args.args] == list(inspect.signature(native).parameters), name


def test_nothing_is_typed_any() -> None:
    folders = [PACKAGE, Path(__file__).parent, WORKSPACE / "examples" / "python"]
    files = [file for folder in folders for kind in ("*.py", "*.pyi") for file in folder.rglob(kind)]
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            assert name != "Any", f"{file}:{getattr(node, 'lineno', 0)}"


def test_both_faces_have_the_same_verbs() -> None:
    assert (PACKAGE / "py.typed").exists()
    for name in aio.__all__:
        sync: object = getattr(nats_bridge, name)
        if inspect.isclass(sync):
            assert public(dir(sync)) == public(dir(getattr(aio, name))), name
