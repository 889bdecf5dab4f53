"""From ml_collections to plain objects: the one boundary where a config is checked.

A choice is a name in a small dict per family, and everything beside the name is a keyword of what the
name stands for: `build(SAMPLERS, {'name': 'euler_edm', 's_churn': 1.0}, where='sampler')`.
"""

import difflib
import importlib.util
import inspect
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections

from sgm_jax.errors import UserError


def load_config(name: str) -> ml_collections.ConfigDict:
    """The config of 'FILE.py' or 'FILE.py:VARIANT': what its get_config returns.

    Raises:
      UserError: there is no such file, or it has no such variant.
    """
    file, _, variant = name.partition(':')
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob('*.py'))
        there = f'{path.parent} has: {", ".join(found)}' if found else 'an example: configs/svd.py'
        raise UserError(f'there is no config file {file}; {there}')
    spec = importlib.util.spec_from_file_location('config_file', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def check_variant(file: str, variant: str, variants: Iterable[str]) -> None:
    """Raises a UserError that lists the variants of a config file, when `variant` is not one of them.

    Args:
      file: the config's `__file__`.
    """
    variants = tuple(variants)
    if variant not in variants:
        named = ', '.join(map(repr, variants))
        raise UserError(
            f'{pathlib.Path(file).name} has no variant {variant!r}; choose one of: {named}'
        )


def plain(node: Any) -> Any:
    """ConfigDicts to dicts and lists to tuples, all the way down, so that the result can be hashed."""
    if isinstance(node, ml_collections.FieldReference):
        return plain(node.get())
    if isinstance(node, (Mapping, ml_collections.ConfigDict)):
        return {key: plain(node[key]) for key in node}
    if isinstance(node, (list, tuple)):
        return tuple(plain(item) for item in node)
    return node


def lookup(table: Mapping[str, Any], name: str | None, where: str) -> Any:
    """The entry of `table` under `name`; an unknown name is a UserError that lists the choices."""
    if name not in table:
        raise UserError(
            f'{where}: unknown name {name!r}; choose one of: {", ".join(sorted(table))}'
        )
    return table[name]


def build(table: Mapping[str, Callable], node: Mapping, *, where: str, **given: Any) -> Any:
    """Calls `table[node['name']]` with the rest of the node and with `given`, which the node can't override.

    Raises:
      UserError: the name is not in the table, or a key is not one of its keywords.
    """
    options = dict(plain(node))
    make = lookup(table, options.pop('name', None), where)
    return call(make, options, where=where, **given)


def call(make: Callable, options: Mapping, *, where: str, **given: Any) -> Any:
    """`make(**options, **given)` after the options' names, and that none is missing, were checked."""
    options = plain(options)
    # A class's own constructor: metaclasses (Flax's) hide its keywords.
    signature = inspect.signature(make.__init__ if inspect.isclass(make) else make)
    parameters = [p for p in signature.parameters.values() if p.name != 'self']
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named if p.name not in given]
    check_keys(options, known, where=where)
    missing = [p.name for p in named if p.default is p.empty and p.name not in {*options, *given}]
    if missing:
        raise UserError(f'{where}: missing {", ".join(map(repr, missing))}')
    given = {k: v for k, v in given.items() if k in {p.name for p in named}}
    try:
        return make(**options, **given)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        # A value that the thing itself refuses.
        raise UserError(f'{where}: {error}') from error


def check_keys(keys: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """Raises a UserError that names the first key that is not known, and its nearest neighbours."""
    known = list(known)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f'did you mean {near[0]!r}? ' if near else ''
            there = f'known keys: {", ".join(sorted(known))}' if known else 'it takes none'
            raise UserError(f'{where}: unknown key {key!r}; {hint}{there}')
