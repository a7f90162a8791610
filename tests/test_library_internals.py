"""The private names of DeepSpeed and torch that the package relies on exist in the installed versions."""

import ast
import importlib
import inspect
from importlib.metadata import version
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from bali_ds import library_internals
from bali_ds.library_internals import DEEPSPEED_NAMES, DEEPSPEED_SIGNATURES, DEEPSPEED_VERSIONS

REMEDY = "check every function of bali_ds/library_internals.py against this version, then change DEEPSPEED_VERSIONS"


def found(path: str) -> Any:
    """The module, class or function of a dotted path."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        owner, _, name = path.rpartition(".")
        return getattr(found(owner), name)


def assigned(owner: type) -> set[str]:
    """The names that the methods of a class assign to self."""
    tree = ast.parse(inspect.getsource(owner))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_the_installed_deepspeed_is_one_that_was_checked():
    installed = version("deepspeed")
    assert installed in SpecifierSet(DEEPSPEED_VERSIONS), f"DeepSpeed {installed} is not {DEEPSPEED_VERSIONS}; {REMEDY}"


@pytest.mark.parametrize("path", DEEPSPEED_NAMES)
def test_private_names_exist(path):
    owner = found(path)
    there = assigned(owner) if isinstance(owner, type) else set()
    missing = [name for name in DEEPSPEED_NAMES[path] if name not in there and not hasattr(owner, name)]
    assert not missing, f"{path} lacks {', '.join(missing)} in DeepSpeed {version('deepspeed')}; {REMEDY}"


@pytest.mark.parametrize("path", DEEPSPEED_SIGNATURES)
def test_functions_take_what_they_are_given(path):
    parameters = list(inspect.signature(found(path)).parameters)
    assert parameters == DEEPSPEED_SIGNATURES[path], f"{path} of DeepSpeed {version('deepspeed')}; {REMEDY}"


def test_fragments_of_parameters_have_the_fields_that_are_read():
    fragment = found("deepspeed.utils.tensor_fragment.tensor_fragment")
    address = found("deepspeed.utils.tensor_fragment.fragment_address")
    assert {"lp_fragment_address", "hp_fragment_address"} <= set(inspect.signature(fragment).parameters), REMEDY
    assert {"start", "numel"} <= set(inspect.signature(address).parameters), REMEDY


def test_process_groups_have_the_methods_that_are_timed():
    names = {name for _, name in library_internals.collective_methods()}
    assert {"allreduce", "_allgather_base", "_reduce_scatter_base", "broadcast", "barrier", "wait"} <= names
