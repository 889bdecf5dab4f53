"""The house's shape: what is declared, what importing does, and which way the imports point."""

import ast
import graphlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / 'sgm_jax').rglob('*.py'))
EVERYTHING = sorted(
    path
    for folder in ('sgm_jax', 'configs', 'benchmarks', 'tests')
    for path in (ROOT / folder).rglob('*.py')
) + sorted(ROOT.glob('*.py'))

LEAVES = {'errors', 'config', 'platforms'}
FROM_NETWORKS_UP = {'networks', 'diffusion', 'conditioning', 'engines', 'parallel', 'interop'}
# Which rooms a room may import, beside itself and the leaves. Rooms that aren't here may import anything.
ALLOWED = {
    'errors': set(),
    'config': set(),
    'platforms': set(),
    'networks': set(),
    'diffusion': set(),
    'conditioning': {'networks', 'diffusion'},
    'parallel': set(),
    'interop': {'networks', 'diffusion', 'conditioning'},
    'engines': FROM_NETWORKS_UP,
    'training': FROM_NETWORKS_UP | {'data', 'sampling'},
    'data': FROM_NETWORKS_UP | {'training', 'sampling'},
    'sampling': FROM_NETWORKS_UP | {'data', 'training'},
}


def room(path: Path) -> str:
    """'networks' of sgm_jax/networks/unet.py; 'errors' of sgm_jax/errors.py."""
    parts = path.relative_to(ROOT / 'sgm_jax').parts
    return parts[0].removesuffix('.py')


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports, anywhere in it; `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path} has a relative import in line {node.lineno}'
            names.update(f'{node.module}.{alias.name}' for alias in node.names)
    return names


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file imports, without its own."""
    names = (name.split('.') for name in imported(path))
    rooms = {parts[1] for parts in names if parts[0] == 'sgm_jax' and len(parts) > 1}
    return rooms - {room(path)}


@pytest.fixture(scope='module')
def project() -> dict:
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def dependency_name(requirement: str) -> str:
    return re.match(r'[A-Za-z0-9_.-]+', requirement).group().lower().replace('_', '-')


def test_requirements_are_the_dependencies_of_pyproject(project):
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    listed = [line.strip() for line in lines if line.strip() and not line.startswith('#')]
    assert sorted(listed) == sorted(project['dependencies'])


def test_every_dependency_and_room_has_its_line_in_the_docs(project):
    page = (ROOT / 'docs' / 'README.md').read_text()
    requirements = project['dependencies'] + project['optional-dependencies']['demo']
    names = [dependency_name(requirement) for requirement in requirements]
    named = {name.lower().replace('_', '-') for name in re.findall(r'`([\w.-]+)`', page)}
    assert [name for name in names if name not in named] == []
    rooms = {room(path) for path in LIBRARY if path.parent != ROOT / 'sgm_jax'}
    assert [name for name in sorted(rooms) if f'`sgm_jax.{name}`' not in page] == []


def test_third_party_imports_are_declared(project):
    declared = {dependency_name(requirement) for requirement in project['dependencies']}
    # Imported where they are used, with a line that says what to install.
    extras = project['optional-dependencies']
    declared |= {
        dependency_name(name)
        for extra in ('demo', 'watermark', 'rembg', 'wandb', 'beam')
        for name in extras[extra]
    }
    # These wheels come under several names (tensorflow-cpu and tensorflow, jax and jaxlib).
    declared |= {'tensorflow', 'jaxlib'}
    # invisible-watermark, which is not installed here, is imported by this name.
    declared |= {'imwatermark'}
    packages = importlib.metadata.packages_distributions()
    undeclared = {}
    for path in LIBRARY + [ROOT / 'train.py', ROOT / 'sample.py']:
        if not path.exists():
            continue
        for top in {name.split('.')[0] for name in imported(path)}:
            if top in sys.stdlib_module_names or top in ('sgm_jax', '__future__'):
                continue
            names = {dependency_name(name) for name in packages.get(top, [top])}
            if not names & declared:
                undeclared.setdefault(top, []).append(str(path.relative_to(ROOT)))
    assert undeclared == {}


def test_imports_point_one_way():
    wrong = [
        f'{path.relative_to(ROOT)} imports {target}'
        for path in LIBRARY
        if room(path) in ALLOWED
        for target in sorted(rooms_imported(path) - ALLOWED[room(path)] - LEAVES)
    ]
    assert wrong == []


def test_rooms_do_not_import_each_other_in_a_circle():
    arrows = {}
    for path in LIBRARY:
        if path != ROOT / 'sgm_jax' / '__init__.py':
            arrows.setdefault(room(path), set()).update(rooms_imported(path))
    list(
        graphlib.TopologicalSorter(arrows).static_order()
    )  # raises CycleError, which names the circle


def test_no_file_is_long():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in EVERYTHING
        if (lines := len(path.read_text().splitlines())) > 450
    }
    assert long == {}


def test_the_library_does_not_print():
    outer = {ROOT / 'sgm_jax' / 'cli.py', *(ROOT / 'sgm_jax' / 'tools').rglob('*.py')}
    prints = [
        f'{path.relative_to(ROOT)}:{node.lineno}'
        for path in LIBRARY
        if path not in outer
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'print'
    ]
    assert prints == []


# Python reports these before they happen, whoever asks for them.
WATCH = """
import sys
events = []
sys.addaudithook(lambda event, args: events.append(event) if event in {watched} else None)
{statements}
loaded = sorted({{'tensorflow', 'torch', 'jax'}} & set(sys.modules))
print(events, loaded)
"""
CONNECTIONS = ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'urllib.Request')


def python(statements: str, watched: tuple[str, ...]) -> str:
    """What a fresh Python did of `watched` while running `statements`, and which libraries it loaded."""
    code = WATCH.format(watched=watched, statements=statements)
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_importing_the_package_opens_no_socket_and_loads_nothing_heavy():
    assert python('import sgm_jax', ('socket.__new__', *CONNECTIONS)) == '[] []'


def test_importing_any_module_reaches_for_no_network_and_no_torch():
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in LIBRARY]
    modules = [name.removesuffix('.__init__') for name in names if not name.endswith('__main__')]
    statements = f'import importlib\nfor name in {modules}: importlib.import_module(name)'
    report = python(statements, CONNECTIONS)
    assert report.startswith('[] ')
    assert 'torch' not in report


def test_the_package_offers_load_and_says_what_it_does_not_have():
    import sgm_jax

    assert re.fullmatch(r'\d+\.\d+\.\d+', sgm_jax.__version__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = sgm_jax.lode
