from __future__ import annotations

import json

from rllib_exit.metrics import grafana_dashboard
from tests.cli.helpers import run


def test_the_dashboard_is_printed_as_json():
    result = run("grafana")
    assert result.exit_code == 0
    assert json.loads(result.output) == grafana_dashboard()
