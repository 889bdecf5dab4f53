"""Plans as lines of JSON."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from sgm_jax.tools.planning import Compiled, Plan


def to_json(plan: Plan) -> str:
    """One line."""
    return json.dumps(dataclasses.asdict(plan))


def from_json(found: Mapping[str, Any]) -> Plan:
    """The plan of a line that was parsed."""
    programs = {name: Compiled(**program) for name, program in found['programs'].items()}
    return Plan(**{**found, 'programs': programs})
