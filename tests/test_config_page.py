from __future__ import annotations

from docs import config_page


def test_the_page_of_settings_is_up_to_date() -> None:
    """If it fails: ``python docs/config_page.py``."""
    assert config_page.PAGE.read_text() == config_page.page()


def test_every_setting_is_in_the_page() -> None:
    text = config_page.page()
    assert "| `lora_r` | `.lora(r=…)` | None or an integer of 1 or more | `None` | The adapters' rank." in text
    assert text.count("\n| `") == sum(len(group.model_fields) for group in config_page.GROUPS)
