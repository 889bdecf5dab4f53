"""What the command lines share: flags, configs, and a user's mistake in one line with exit code 2."""

import logging
import pdb
import re
import sys
import traceback
from collections.abc import Callable, Sequence

import ml_collections
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from sgm_jax.config import check_keys, load_config
from sgm_jax.errors import UserError
from sgm_jax.parallel import hosts
from sgm_jax.parallel.host_memory import restart_with_large_pages
from sgm_jax.training.options import defaults
from sgm_jax.training.run import STOPPED

# The exit code of a user's mistake.
MISTAKE = 2
DEBUG = flags.DEFINE_bool('debug', False, 'tracebacks; on a terminal, a debugger where it broke')
QUIET = flags.DEFINE_bool('quiet', False, 'say only what is wrong')


def define_config(help_string: str) -> flags.FlagHolder:
    """The flag --config FILE.py[:VARIANT], whose keys are flags too: --config.train.steps=100."""
    holder = config_flags.DEFINE_config_file('config', None, help_string, lock_config=True)
    flag = flags.FLAGS['config']
    flag.parser = _Complete(flag.parser)
    return holder


class _Complete(flags.ArgumentParser):
    """Adds to a config what it leaves to the defaults, so that these keys are flags, too."""

    def __init__(self, inside: flags.ArgumentParser):
        self._inside = inside

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        return _completed(self._inside.parse(argument))

    def flag_type(self) -> str:
        return self._inside.flag_type()


def _completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    if isinstance(config, ml_collections.ConfigDict) and 'train' in config:
        with config.unlocked():
            for name, values in defaults().items():
                if name not in config:
                    config[name] = ml_collections.ConfigDict()
                for key in values.keys() - set(config[name]):
                    config[name][key] = values[key]
    return config


def run(main: Callable[[], int | None], argv: Sequence[str] | None = None) -> None:
    """Parses the flags, calls `main` and exits: 0 or what it returns, or 2 after one line on a mistake."""
    if argv is None:
        restart_with_large_pages()
    show_messages()
    try:
        _parse(list(sys.argv if argv is None else argv))
        if QUIET.value:
            logging.getLogger('sgm_jax').setLevel(logging.WARNING)
        if not DEBUG.value:
            # Of a write that fails each of Orbax's threads tells, with tracebacks; we say it once.
            for name in ('absl', 'asyncio', 'concurrent.futures'):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        code = main() or 0
    except UserError as error:
        _look_into()
        code = _say(error, MISTAKE)
    except hosts.LostError as error:
        code = _say(error, hosts.LOST)
    except KeyboardInterrupt:
        code = _say('interrupted', STOPPED)
        hosts.leave(hosts.LOST)
    except Exception:
        # The other hosts would wait for this one.
        traceback.print_exc()
        _look_into(told=True)
        hosts.leave(1)
        raise SystemExit(1) from None
    hosts.leave(code)
    sys.exit(code)


def _look_into(*, told: bool = False) -> None:
    """With --debug: where an error comes from, and on a terminal a debugger there."""
    if not flags.FLAGS.is_parsed() or not DEBUG.value:
        return
    if not told:
        traceback.print_exc()
    if sys.stdin.isatty():
        pdb.post_mortem(sys.exc_info()[2])


def _say(error: Exception | str, code: int) -> int:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return code


def show_messages() -> None:
    """Lets the project's own messages through to stderr, above any progress bar."""
    logger = logging.getLogger('sgm_jax')
    if not logger.handlers:
        logger.addHandler(_AboveTheBar())
        logger.setLevel(logging.INFO)
        logger.propagate = False  # TensorFlow gives the root a handler of its own


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _parse(argv: list[str]) -> None:
    app.define_help_flags()
    flags.FLAGS.set_gnu_getopt(True)
    name = config_name(argv)
    config = _completed(load_config(name)) if name else None
    try:
        rest = flags.FLAGS(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        if config is not None:
            _check_overrides(argv, config)
        raise UserError(f'{error}; --help lists the flags') from error
    if rest:
        raise UserError(f'unexpected argument {rest[0]!r}; options begin with --, see --help')


def config_name(argv: Sequence[str]) -> str | None:
    """What --config names in a command line."""
    for index, word in enumerate(argv):
        name, equals, value = word.lstrip('-').partition('=')
        if word.startswith('-') and name == 'config':
            return value if equals else ''.join(argv[index + 1 : index + 2])
    return None


def _check_overrides(argv: Sequence[str], config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for the first --config.key that does not exist, with its neighbours."""
    for word in argv:
        match = re.match(r'--?(?:no)?config\.([^=]+)', word)
        node, where = config, 'config'
        for key in match.group(1).split('.') if match else ():
            if isinstance(node, ml_collections.ConfigDict):
                check_keys([key], node.keys(), where=where)
                node, where = node[key], f'{where}.{key}'
