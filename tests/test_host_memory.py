"""Commands that compute on the CPU start themselves again with large pages, once."""

import os
import subprocess
import sys

import pytest

from sgm_jax.parallel import host_memory

ASKED = 'glibc.malloc.hugetlb=1'
ON_GLIBC = pytest.mark.skipif(not host_memory._glibc(), reason='another C library')


@ON_GLIBC
def test_other_settings_of_the_user_stay():
    variables = {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': 'glibc.malloc.check=1', 'HOME': '/home'}
    expected = {**variables, 'GLIBC_TUNABLES': f'glibc.malloc.check=1:{ASKED}'}
    assert host_memory.environment(variables) == expected


@pytest.mark.parametrize(
    'variables',
    [
        {'JAX_PLATFORMS': 'cuda,cpu'},
        {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': ASKED},
        {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'},
    ],
)
def test_accelerators_and_choices_are_left_alone(variables):
    assert host_memory.environment(variables) is None


@ON_GLIBC
def test_a_command_runs_once_in_one_process():
    program = (
        'import os, sys\n'
        'from sgm_jax.parallel.host_memory import restart_with_large_pages\n'
        'print("started", os.getpid(), flush=True)\n'
        'restart_with_large_pages()\n'
        'print(os.environ["GLIBC_TUNABLES"], sys.argv[1:], os.getpid())\n'
    )
    environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
    done = subprocess.run(
        [sys.executable, '-c', program, 'one word', '--flag=2'],
        env={**environment, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert last == f"{ASKED} ['one word', '--flag=2'] {first.split()[1]}"
