"""Where a tokenizer's folder keeps its chat template: in `chat_template.jinja`, or under
`chat_template` in `tokenizer_config.json`."""

from pathlib import Path

from dsm_engine.errors import DsmError
from dsm_engine.files import atomic_file, read_json, read_text

_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
"""What transformers passes to a template besides the messages."""


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a tokenizer's folder, `default` where it has several, or None."""
    if (folder / _FILE).is_file():
        return read_text(folder / _FILE)
    path = folder / _CONFIG
    config = read_json(path) if path.is_file() else {}
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):  # [{"name": ..., "template": ...}]
        if not all(isinstance(entry, dict) for entry in found):
            raise DsmError(f"{path}: chat_template: expected a list of objects with name, template")
        default = (entry for entry in found if entry.get("name") == "default")
        found = next(default, {}).get("template")
    if not isinstance(found, str | None):
        raise DsmError(f"{path}: chat_template: expected text, found {type(found).__name__}")
    return found


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The SPECIAL_TOKENS that tokenizer_config.json gives a value: name to token."""
    path = folder / _CONFIG
    config = read_json(path) if path.is_file() else {}
    tokens = {}
    for name in SPECIAL_TOKENS if isinstance(config, dict) else ():
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def copy_chat_template(source: Path, target: Path) -> None:
    """Writes the chat template of one tokenizer's folder to another, where there is one."""
    jinja = read_chat_template(source)
    if jinja is not None:
        with atomic_file(target / _FILE) as file:
            file.write(jinja.encode())
