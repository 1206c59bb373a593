"""Secrets: each kind is found, however it is written, and ordinary text is left alone."""

import base64
import gzip
import json
import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest

from livelm.sources.sessions import Sessions, SessionsSettings
from livelm.sources.sessions.redact import find_secrets, replace

ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


def _random(seed: int, n: int, alphabet: str = ALNUM) -> str:
    """Looks like a key: at least one letter and one digit among the first sixteen characters."""
    rng = random.Random(seed)
    text = [rng.choice(alphabet) for _ in range(n)]
    text[1], text[3] = (
        rng.choice([c for c in alphabet if c.isdigit()]),
        rng.choice([c for c in alphabet if c.isalpha()]),
    )
    return "".join(text)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _jwt(seed: int) -> str:
    parts = [json.dumps({"alg": "HS256", "typ": "JWT"}), json.dumps({"sub": _random(seed, 20)})]
    return ".".join([base64.urlsafe_b64encode(p.encode()).decode().rstrip("=") for p in parts] + [_random(seed, 43)])


TOKENS: dict[str, Callable[[int], str]] = {
    "anthropic-key": lambda s: "sk-ant-" + f"api03-{_random(s, 93)}AA",
    "openai-key": lambda s: "sk-" + f"proj-{_random(s, 74)}",
    "openai-key old": lambda s: "sk-" + _random(s, 48),
    "github-token": lambda s: "ghp" + "_" + _random(s, 36),
    "github-token app": lambda s: "ghs" + "_" + _random(s, 36),
    "github-token fine": lambda s: "github" + f"_pat_{_random(s, 22)}_{_random(s + 1, 59)}",
    "gitlab-token": lambda s: "glpat" + "-" + _random(s, 20),
    "aws-access-key": lambda s: "AKIA" + _random(s, 16, string.ascii_uppercase + "234567"),
    "gcp-api-key": lambda s: "AIza" + _random(s, 35),
    "gcp-oauth": lambda s: "GOCSPX" + "-" + _random(s, 28),
    "gcp-oauth access": lambda s: "ya29" + "." + _random(s, 60),
    "azure-client-secret": lambda s: _random(s, 8)[:3] + "8Q~" + _random(s, 34),
    "slack-token": lambda s: "xoxb" + f"-{_random(s, 12, string.digits + 'ab')}-{_random(s, 24)}",
    "slack-webhook": lambda s: "hooks.slack.com" + f"/services/T{_random(s, 8)}/B{_random(s, 8)}/{_random(s, 24)}",
    "stripe-key": lambda s: "sk" + f"_live_{_random(s, 24)}",
    "stripe-key hook": lambda s: "whsec" + f"_{_random(s, 32)}",
    "npm-token": lambda s: "npm" + "_" + _random(s, 36),
    "pypi-token": lambda s: "pypi" + "-AgEIcHlwaS5vcmc" + _random(s, 120),
    "huggingface-token": lambda s: "hf" + "_" + _random(s, 34),
    "jwt": _jwt,
    "sendgrid-key": lambda s: "SG" + f".{_random(s, 22)}.{_random(s + 1, 43)}",
    "twilio-key": lambda s: "SK" + _random(s, 32, HEX),
    "telegram-token": lambda s: "1234567890" + f":AA{_random(s, 33)}",
    "digitalocean-token": lambda s: "dop" + f"_v1_{_random(s, 64, HEX)}",
    "databricks-token": lambda s: "dapi" + _random(s, 32, HEX),
    "shopify-token": lambda s: "shpat" + "_" + _random(s, 32, HEX),
    "vault-token": lambda s: "hvs" + "." + _random(s, 90),
    "service-key": lambda s: "gsk" + "_" + _random(s, 52),
}
PHRASES = {
    "url-credentials": ("postgres://bob:{}@db.example.org:5432/x", lambda s: _random(s, 10)),
    "url-credentials escaped": (r'"https:\/\/bob:{}@example.org\/x"', lambda s: _random(s, 10)),
    "authorization": ("Authorization: Bearer {}", lambda s: _random(s, 40)),
    "authorization basic": ("-H 'Authorization: Basic {}'", lambda s: _base64(_random(s, 21))),
    "authorization json": (r'{{\"authorization\": \"token {}\"}}', lambda s: _random(s, 40)),
    "cookie": ("Set-Cookie: session={}; Path=/", lambda s: _random(s, 32)),
    "azure-key": ("DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};E=x", lambda s: _random(s, 86) + "=="),
    "azure-key sas": ("https://a.blob.core.windows.net/c?sv=2024&sig={}", lambda s: _random(s, 43) + "%3D"),
    "aws-secret": ("aws_secret_access_key = {}", lambda s: _random(s, 40)),
    "password": ("DB_PASSWORD={}", lambda s: _random(s, 9)),
    "password yaml": ("  password: '{}'", lambda s: "pa ss" + _random(s, 5)),
    "password json": (r"{{\"password\": \"{}\"}}", lambda s: _random(s, 9) + "!"),
    "password flag": ("mysql --password {}", lambda s: _random(s, 9)),
    "secret": ('"client_secret": "{}"', lambda s: _random(s, 32)),
    "secret env": ("export SERVICE_API_KEY={}", lambda s: _random(s, 32, HEX)),
    "secret code": ("config['token'] = '{}'", lambda s: _random(s, 24)),
    "email": ("mail {} now", lambda s: f"jane.{_random(s, 6).lower()}@example.org"),
    "home": ("in /home/{}/work", lambda s: "jane" + _random(s, 6)),
    "home mac": ("cd /Users/{}/work", lambda s: "jane" + _random(s, 6)),
    "home windows": (r"C:\Users\{}\x", lambda s: "jane" + _random(s, 6)),
    "home windows escaped": (r"C:\\Users\\{}\\x", lambda s: "jane" + _random(s, 6)),
    "home folder": (".claude/projects/-Users-{}-work/a.jsonl", lambda s: "jane" + _random(s, 6)),
}  # fmt: skip


def _redacted(text: str) -> str:
    return replace(text, find_secrets(text))


def _leaks(secret: str, text: str, n: int = 9) -> bool:
    """Whether `n` characters in a row of the secret's random part stand in the text."""
    tail = secret[6:] if len(secret) > 20 else secret
    return any(tail[i : i + n] in text for i in range(max(1, len(tail) - n + 1)))


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "key {} end",
        "K={}\nnext line",
        '"{}"',
        r"\"{}\"\n",
        "`{}`",
        "({}).",
        "a={}&b=1",
        "x\n{}\ny",
        r"a\n{}\nb",
        r"\u003d{}",
        "%3D{}",
    ],
)
def test_a_token_is_found_wherever_it_stands(name: str, around: str) -> None:
    for seed in range(5):
        secret = TOKENS[name](seed)
        text = _redacted(around.format(secret))
        assert not _leaks(secret, text), text
        assert "[redacted:" in text


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_is_named(name: str) -> None:
    assert f"[redacted:{name.split()[0]}]" in _redacted(f"my {TOKENS[name](1)} key")


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize(
    "joint", ["\n", "\r\n", "\n    ", "\\\n", r"\n", r"\\n", '" + "', '"\n    "', "\u200b", "\n> ", "\n    12\t"]
)
def test_a_token_cut_in_two_is_found(name: str, joint: str) -> None:
    for seed in range(3):
        secret = TOKENS[name](seed)
        for at in {2, 5, len(secret) // 3, len(secret) // 2, len(secret) - 9}:
            text = f"key:\n{secret[:at]}{joint}{secret[at:]}\n\nThat was all."
            redacted = _redacted(text)
            assert not _leaks(secret, redacted), (at, redacted)
            assert redacted.endswith("That was all.")


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_written_with_json_escapes_is_found(name: str) -> None:
    secret = TOKENS[name](7)
    escaped = "".join(f"\\u{ord(c):04x}" if i % 4 == 0 else c for i, c in enumerate(secret))
    redacted = _redacted(f'{{"k": "{escaped}", "other": 1}}')
    assert not any(escaped[i : i + 16] in redacted for i in range(8, len(escaped) - 16))
    assert redacted.endswith('", "other": 1}')


@pytest.mark.parametrize("name", PHRASES)
def test_a_secret_that_its_words_give_away_is_found(name: str) -> None:
    around, make = PHRASES[name]
    for seed in range(5):
        secret = make(seed)
        redacted = _redacted("before\n" + around.format(secret) + "\nafter")
        assert secret not in redacted
        assert not _leaks(secret, redacted, 8), redacted
        assert f"[redacted:{name.split()[0]}]" in redacted
        assert redacted.startswith("before\n")
        assert redacted.endswith("\nafter")


def _key(kind: str = "RSA ") -> tuple[str, list[str]]:
    body = [_random(i, 64, ALNUM + "+/") for i in range(20)] + [_random(99, 20)]
    return "\n".join([f"-----BEGIN {kind}PRIVATE KEY-----", *body, f"-----END {kind}PRIVATE KEY-----"]), body


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
@pytest.mark.parametrize(
    "write",
    [
        lambda key: key,
        lambda key: json.dumps({"private_key": key}),
        lambda key: json.dumps(json.dumps({"private_key": key})),
        lambda key: key.rsplit("\n", 3)[0],  # cut off: no end line
        lambda key: "\n".join(f"{i:>6}→{line}" for i, line in enumerate(key.splitlines(), 1)),
        lambda key: "\n".join(key.splitlines()[4:-4]),  # neither begin nor end line
    ],
)
def test_a_private_key_is_found_whole(kind: str, write: Callable[[str], str]) -> None:
    key, body = _key(kind)
    redacted = _redacted(f"look:\n{write(key)}\n\nThat was the key.")
    assert not any(line in redacted for line in body)
    assert redacted.endswith("That was the key.")


@pytest.mark.parametrize(
    "text",
    [
        "password: required",
        "max_tokens=4096, total_tokens: 123456",
        "token = os.environ['GITHUB_TOKEN']",
        'api_key = "your-api-key-here"',
        "API_KEY=${API_KEY}",
        "password = getpass.getpass()",
        "self.secret = settings.secret_value",
        "tokenizer: str = 'gpt2-medium-2024'",
        "the task-oriented risk-averse desk-bound approach of sk-learn",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "session 07f2e15c-a38b-454b-9148-60edc06de401",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "git@github.com:owner/name.git and icon@2x.png",
        "https://example.org/home/page and ./home/page",
        "keyboard shortcut: Ctrl+Shift+P",
        "http://localhost:8080/path@v1.2.3",
        "eyJ is how a token begins; sk-ant- too; ghp_ as well",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert _redacted(text) == text


def test_real_text_loses_less_than_one_place_in_a_megabyte(shared: Callable[[str], Path]) -> None:
    folder = shared("text")
    texts = [(folder / "tinyshakespeare/input.txt").read_text(), (folder / "wikitext-2/test.txt").read_text()]
    with gzip.open(folder / "openwebtext-1000/openwebtext-1000.jsonl.gz") as file:
        texts.append("\n".join(json.loads(line)["text"] for line in file))
    pieces = [text[i : i + 50_000] for text in texts for i in range(0, len(text), 50_000)]
    found = [secret.rule for piece in pieces for secret in find_secrets(piece) if secret.rule != "email"]
    assert len(found) <= sum(map(len, texts)) / 1e6


def _sessions(folder: Path, messages: list[object], **settings: object) -> bytes:
    """What a log of one answer a line gives."""
    lines = [
        {"type": "assistant", "uuid": f"u{i}", "parentUuid": f"u{i - 1}" if i else None, "sessionId": "s", "message": m}
        for i, m in enumerate(messages)
    ]
    path = folder / "s.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = Sessions(str(path), SessionsSettings(follow=False, **settings))  # type: ignore[arg-type]
    return b"".join(document.text for document, _ in source.read(None))


@pytest.mark.parametrize("name", TOKENS)
def test_nothing_planted_reaches_a_document(name: str, tmp_path: Path) -> None:
    secret = TOKENS[name](3)
    half = len(secret) // 2
    content = [
        {"type": "text", "text": f"one {secret} two"},
        {
            "type": "tool_use",
            "id": "t",
            "name": "Bash",
            "input": {"command": f"echo {secret}", "deep": [{"k": secret}]},
        },
        {"type": "thinking", "thinking": f"hm {secret}"},
    ]
    answer = {"role": "assistant", "id": "a", "content": content}
    blocks = [
        {"role": "assistant", "id": "b", "content": [{"type": "text", "text": t}]}
        for t in (secret[:half], secret[half:])
    ]
    result = {
        "type": "tool_result",
        "tool_use_id": "t",
        "content": [{"type": "text", "text": "y" * 500 + f" {secret} " + "z" * 500}],
    }
    text = _sessions(
        tmp_path, [answer, *blocks, {"role": "user", "content": [result]}], result_bytes=1000, piece_bytes=64
    )
    assert text.count(b"one") == 1
    assert not _leaks(secret, text.decode())
    assert secret in _sessions(tmp_path, [answer], redact=False).decode()


def test_what_was_redacted_is_counted_by_rule(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    text = f"{TOKENS['npm-token'](1)} and {TOKENS['npm-token'](2)} of jane@example.org"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n")
    source = Sessions(str(path), SessionsSettings(follow=False))
    [(document, _)] = source.read(None)
    assert document.text == b"### user\n[redacted:npm-token] and [redacted:npm-token] of [redacted:email]\n\n"
    seen = source.observe()
    assert (seen["n_redacted"], seen["redacted"]) == (3, {"email": 1, "npm-token": 2})
