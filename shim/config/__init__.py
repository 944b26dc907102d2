"""Configuration: `keepwarm.toml` and `HARNESS_ENDPOINTS`, checked to the last key.

`load_config()` finds, reads and checks; `Config` is the result, frozen. Every mistake of a file is
in one `ConfigError` that names the file, the line, the key, what was found and what is allowed.
"""

from shim.config.fetch import fetch_hub_file, parse_hub_file
from shim.config.loader import FILE_NAME, find_config, load_config, risks_of_file, user_config_file
from shim.config.schema.document import Config
from shim.config.schema.entry import ModelEntry, Role
from shim.config.schema.reference import json_schema, markdown_reference
from shim.config.schema.sections import BudgetSection, KeeperSection, TraceSection
from shim.config.schema.values import FOREVER, Amount
from shim.config.trust import TrustedFiles

__all__ = [
    "FILE_NAME",
    "FOREVER",
    "Amount",
    "BudgetSection",
    "Config",
    "KeeperSection",
    "ModelEntry",
    "Role",
    "TraceSection",
    "TrustedFiles",
    "fetch_hub_file",
    "find_config",
    "json_schema",
    "load_config",
    "markdown_reference",
    "parse_hub_file",
    "risks_of_file",
    "user_config_file",
]
