"""What a user is told when a device's memory is too small."""

import jax
import jax.numpy as jnp
import pytest

from sgm_jax.errors import UserError
from sgm_jax.parallel.memory import needed_bytes, or_else


def test_a_compiler_that_runs_out_of_memory_says_how_much_it_needs():
    message = (
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
        'Used 23.50G of 15.75G hbm. Exceeded hbm capacity by 7.75G.'
    )
    assert needed_bytes(message) == 23.5 * 2**30
    message = (
        'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required '
        'for HLO temporaries (23.96G) exceeds available HBM (15.75G). HLO module: jit_decode.'
    )
    assert needed_bytes(message) == 23.96 * 2**30
    assert needed_bytes('INTERNAL: something else') is None


def test_an_array_that_no_device_holds_ends_in_advice():
    with pytest.raises(UserError) as caught, or_else('give fewer'):
        jax.block_until_ready(jnp.zeros((2**50,), jnp.float32))
    assert 'a device has too little memory: Out of memory allocating' in str(caught.value)
    assert str(caught.value).endswith('; give fewer')


def test_other_errors_of_the_runtime_stay_what_they_are():
    def broken(x):
        raise ValueError('broken inside')

    outside = jax.ShapeDtypeStruct((), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match='broken inside'), or_else('give fewer'):
        jax.block_until_ready(jax.pure_callback(broken, outside, 1.0))
