"""Where a tokenizer's folder keeps its chat template: in `chat_template.jinja`, or under
`chat_template` in `tokenizer_config.json`."""

from pathlib import Path

from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, read_json, read_text

_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a tokenizer's folder, `default` where it has several, or None."""
    if (folder / _FILE).is_file():
        return read_text(folder / _FILE)
    path = folder / _CONFIG
    config = read_json(path) if path.is_file() else {}
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):  # [{"name": ..., "template": ...}]
        named = {entry.get("name"): entry.get("template") for entry in found if entry}
        found = named.get("default")
    if not isinstance(found, str | None):
        raise DsmError(f"{path}: chat_template: expected text, found {type(found).__name__}")
    return found


def copy_chat_template(source: Path, target: Path) -> None:
    """Writes the chat template of one tokenizer's folder to another, where there is one."""
    jinja = read_chat_template(source)
    if jinja is not None:
        with atomic_file(target / _FILE) as file:
            file.write(jinja.encode())
