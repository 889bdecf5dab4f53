"""placeholder"""


def xla_flags():
    return ''
