"""What a secret looks like: one rule per kind of key, compiled from the formats that their issuers publish.

Three sorts. A *token* is recognised by its prefix and alphabet alone, so it is also found when line breaks, JSON
escapes or quotes cut it into parts. A *phrase* needs what stands around it (`password=`, `Authorization:`, `://u:p@`).
An *identity* is no key but tells who somebody is. What no rule can know: a password in plain prose, a random string
that nothing names.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of secret. Searching for fixed strings first makes it fifty times faster than the patterns alone."""

    name: str
    """Stands in the placeholder: `[redacted:NAME]`."""
    triggers: tuple[str, ...]
    """Every such secret has one of these in its match."""
    reach: int
    """How many characters before the trigger the match may begin; 0: the match begins with it."""
    pattern: re.Pattern[str]
    """The secret is its last group that took part, or all of it when it has none."""
    genuine: Callable[[str], bool]
    """Whether what was found is a secret and no placeholder or word."""
    apart: bool = False
    """A letter or digit right before it means that it is the end of a word."""


def bits_per_character(text: str) -> float:
    """Shannon entropy of the characters; 0 for an empty text."""
    counts = Counter(text).values()
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


def is_mixed(secret: str) -> bool:
    """Whether it has a digit and a letter, as random strings of twenty characters do and words do not."""
    return any(c.isdigit() for c in secret) and any(c.isalpha() for c in secret)


PLACEHOLDER = re.compile(
    r"\[redacted|\$[({\w]|<|%[({]|\{\{|\*{3}|x{4}|\.\.\.|…|your[-_ ]?|placeholder|change[-_ ]?me|"
    r"^(?:true|false|null|none|undefined|string|required|optional)\b|"
    r"process\.env|os\.environ|getenv|[\w.]+\(|^[\w.]+\[|^self\.|^this\.",
    re.IGNORECASE,
)


def is_password(secret: str) -> bool:
    """At least two of: lower case, upper case, digits, others; and no placeholder, path of code or plain word."""
    classes = (str.islower, str.isupper, str.isdigit, lambda c: not c.isalnum() and c not in "_-. ")
    return len(secret) >= 6 and sum(any(map(is_in, secret)) for is_in in classes) >= 2 and _is_literal(secret)


def is_random(secret: str) -> bool:
    """Long, mixed, and at least 3 bits a character: what a generator makes (16 hex digits have 3.0 to 3.6)."""
    return len(secret) >= 12 and is_mixed(secret) and bits_per_character(secret) >= 3.0 and _is_literal(secret)


def _is_literal(secret: str) -> bool:
    name = re.fullmatch(r"[A-Za-z_]+\d?(?:[.\-/][A-Za-z_]+\d{0,2})*", secret)  # a.b.c, some-name, VARIABLE_1
    return PLACEHOLDER.search(secret) is None and name is None and not secret.startswith(("/", "./", "~/", "http"))


def _always(secret: str) -> bool:
    return True


def _token(
    name: str, triggers: str, pattern: str, genuine: Callable[[str], bool] = is_mixed, *, reach: int = 0
) -> Rule:
    """A rule for the text as it stands; prefixes of three characters or fewer may be the end of a word."""
    prefixes = tuple(triggers.split())
    apart = reach == 0 and min(map(len, prefixes)) <= 3
    return Rule(name=name, triggers=prefixes, reach=reach, pattern=re.compile(pattern), genuine=genuine, apart=apart)


def _phrase(
    name: str, triggers: str, pattern: str, genuine: Callable[[str], bool] = _always, *, reach: int = 0
) -> Rule:
    """A rule for the text in lower case; triggers are separated by commas."""
    compiled = re.compile(pattern, re.DOTALL)
    return Rule(name=name, triggers=tuple(triggers.split(",")), reach=reach, pattern=compiled, genuine=genuine)


W = "[A-Za-z0-9_-]"
A = "[A-Za-z0-9]"
STARTS = "gsk_ xai- lin_api_ ntn_ dckr_pat_ r8_ pplx- sntrys_ sbp_ glsa_ glc_ NRAK- pul- PMAK- tvly- figd_ ATATT3"
GITLAB = "glpat- gldt- glrt- glrtr- glcbt- glptt- glft- glimt- glagent- gloas- glsoat- glffct-"
TOKENS = (
    _token("anthropic-key", "sk-ant-", rf"sk-ant-{W}{{16,}}"),
    _token("openai-key", "sk-", rf"sk-{W}{{20,}}"),
    _token("github-token", "ghp_ gho_ ghu_ ghs_ ghr_", rf"gh[pousr]_{A}{{36,}}"),
    _token("github-token", "github_pat_", rf"github_pat_{A}{{20,}}_?\w*"),
    _token("gitlab-token", GITLAB, rf"gl[a-z]+-{W}{{20,}}(?:\.{W}{{2,}})*"),
    _token("aws-access-key", "AKIA ASIA ABIA ACCA", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}", _always),
    _token("aws-bedrock-key", "ABSK", r"ABSK[A-Za-z0-9+/]{109,}={0,2}"),
    _token("gcp-api-key", "AIza", rf"AIza{W}{{35}}"),
    _token("gcp-oauth", "GOCSPX- ya29. 1//0", rf"GOCSPX-{W}{{24,}}|ya29\.{W}{{20,}}|1//0{W}{{30,}}"),
    _token("azure-client-secret", "Q~", r"[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.-]{31,34}", reach=4),
    _token("slack-token", "xox", r"xox[abceoprs](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}"),
    _token("slack-token", "xapp-", r"xapp-\d-[A-Za-z0-9-]{20,}"),
    _token("slack-webhook", "hooks.slack.com", r"hooks\.slack\.com/[a-z]+/[A-Za-z0-9/_-]{20,}"),
    _token("stripe-key", "sk_live_ sk_test_ rk_live_ rk_test_", rf"[sr]k_[a-z]+_{A}{{16,}}"),
    _token("stripe-key", "whsec_", r"whsec_[A-Za-z0-9+/]{24,}=*"),
    _token("npm-token", "npm_", rf"npm_{A}{{36,}}"),
    _token("pypi-token", "pypi-", rf"pypi-{W}{{50,}}"),
    _token("huggingface-token", "hf_", rf"hf_{A}{{30,}}"),
    _token("jwt", "eyJ", rf"eyJ{W}{{8,}}\.{W}{{8,}}(?:\.{W}*){{0,3}}", _always),
    _token("sendgrid-key", "SG.", rf"SG\.{W}{{16,}}\.{W}{{16,}}"),
    _token("twilio-key", "SK AC", r"(?:SK|AC)[0-9a-f]{32}"),
    _token("telegram-token", ":AA", rf"\d{{8,10}}:AA{W}{{33}}", reach=10),
    _token("discord-webhook", "/api/webhooks/", rf"/api/webhooks/\d+/{W}{{30,}}"),
    _token("digitalocean-token", "dop_v1_ doo_v1_ dor_v1_", r"do[opr]_v1_[a-f0-9]{64}"),
    _token("databricks-token", "dapi", r"dapi[a-f0-9]{32}(?:-\d)?"),
    _token("shopify-token", "shpat_ shpca_ shppa_ shpss_", r"shp[a-z]+_[a-fA-F0-9]{32}"),
    _token("vault-token", "hvs. hvb.", rf"hv[sb]\.{W}{{24,}}"),
    _token("age-key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
    _token("service-key", STARTS, rf"[A-Za-z0-9]+(?:[_-](?:api|pat))?[_-]?{W}{{22,}}"),
)
"""Secrets that their own first characters give away."""

QUOTE = r"\\{0,3}[\"'`]"
VALUE = rf"(?:{QUOTE}((?:[^\"'`\\\r\n]|\\[^\"'nr]){{6,4000}}?){QUOTE}|([^\s\"'`,;(){{}}\[\]<>\\&|]{{6,4000}}))"
ASSIGN = rf"(?:{QUOTE})?\]?[ \t]*(?:=>|:=|==?|:)[ \t]*[rbfu]?"
PASSWORDS = "password,passwd,passphrase,passwort,pwd"
KEYS = (
    "secret,token,api_key,api-key,apikey,access_key,access-key,accesskey,auth_key,auth-key,private_key,private-key,"
    "encryption_key,encryption-key,signing_key,signing-key,credential"
)
FLAGS = "--password,--passwd,--pwd,--secret,--token,--api-key,--api_key,--access-key,--client-secret,--auth-token,--key"
PEM_WORDS = r"[a-z0-9 ]{0,40}private key(?: block)?-----"
SCHEMES = "bearer|basic|token|digest|negotiate|apikey|aws4-hmac-sha256"
GAP = r"(?:\\{1,4}[rn]|\s)*(?:\d+[→|:\t]\s*)?"
"""Between two lines of a key file: a line break, escaped or not, and the number that an editor puts before a line."""
PHRASES = (
    _phrase(
        "private-key",
        "-----begin ",
        rf"-----begin {PEM_WORDS}(?:.*?-----end {PEM_WORDS}|"
        rf"{GAP}(?:[a-z-]+: [^\n\\]+{GAP})*(?:[a-z0-9+/=]{{16,}}{GAP})*)",
    ),
    _phrase("putty-key", "putty-user-key-file", r"putty-user-key-file.*?(?:private-mac: \w+|\Z)"),
    _phrase(
        "url-credentials",
        "://",
        r"://([^\s/:@\"'<>\\]{0,256}:[^\s/@\"'<>\\]{1,1024})@",
        lambda secret: PLACEHOLDER.search(secret) is None,
    ),
    _phrase("url-credentials", ":\\/\\/", r":\\/\\/([^\s/:@\"'<>\\]{0,256}:[^\s/@\"'<>\\]{1,1024})@"),
    _phrase(
        "authorization",
        "authorization",
        rf"authorization(?:{QUOTE})?[ \t]*[:=,][ \t]*(?:{QUOTE})?(?:(?:{SCHEMES})[ \t]+)?"
        r"([^\s\"'`\\]{6,}(?:, ?[a-z]+=[^\s\"'`\\]+)*)",
        lambda secret: is_password(secret) or is_random(secret),
    ),
    _phrase("authorization", "bearer ", r"bearer[ \t]+([a-z0-9._~+/-]{12,}=*)", lambda secret: is_random(secret)),
    _phrase("authorization", "basic ", r"basic[ \t]+([a-z0-9+/]{12,}={0,2})", lambda secret: is_random(secret)),
    _phrase("cookie", "cookie", r"cookie(?:\\?[\"'])?[ \t]*:[ \t]*(?:\\?[\"'])?([\w.%-]+=[^\r\n\"'\\]{8,})"),
    _phrase(
        "azure-key",
        "accountkey=,sharedaccesskey=,accesskey=,&sig=,?sig=",
        r"[?&]?[a-z]+=([a-z0-9+/%]{40,}={0,2})",
    ),
    _phrase(
        "aws-secret",
        "aws",
        r"aws[\w.\"' -]{0,40}?(?:secret|key)[\w.]*[\"']?[ \t]*[=:, ][ \t]*[\"']?([a-z0-9/+]{40})(?![a-z0-9/+])",
    ),
    _phrase("password", PASSWORDS, rf"(?:{PASSWORDS.replace(',', '|')})[\w-]*{ASSIGN}{VALUE}", is_password),
    _phrase("password", "--pass,--pwd", rf"--p[a-z]+(?:[ \t]+|=){VALUE}", is_password),
    _phrase("secret", KEYS, rf"(?:{KEYS.replace(',', '|')})[\w-]*{ASSIGN}{VALUE}", is_random),
    _phrase("secret", FLAGS, rf"--[a-z_-]+(?:[ \t]+|=){VALUE}", is_random),
)
"""Secrets that the words before them give away; searched for in lower case."""

BODIES = _phrase(
    "key-body",  # part of a key file: two or more full lines of base64, whatever numbers an editor puts before them
    "",
    rf"(?<![a-z0-9+/])(?:[a-z0-9+/]{{64}}(?![a-z0-9+/]){GAP}){{2,}}(?:[a-z0-9+/]{{16,}}={{0,2}})?",
    lambda secret: is_mixed(secret) and bits_per_character(secret) > 4.5,
)
"""Has no trigger: searched for where a line is long enough."""

FILE = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|js|ts|css|md|py|json)$", re.IGNORECASE)
IDENTITIES = (
    _phrase(
        "email",
        "@",
        r"(?<![\w.+/@-])[a-z0-9_%+-][a-z0-9._%+-]{0,63}@(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}\b",
        lambda secret: not secret.lower().startswith("git@") and FILE.search(secret) is None,
        reach=64,
    ),
    _phrase("home", "/home/,/users/", r"(?<![\w.~-])(?:/var)?/(?:home|users)/[^/\s\"'`:;,<>|*?(){}\[\]\\]+", reach=4),
    _phrase("home", ":\\users\\,:\\\\users\\", r"[a-z]:\\{1,4}users\\{1,4}[^\\/\s\"'`:;,<>|*?]+", reach=1),
    _phrase("home", "-users-,-home-", r"(?:(?<![^/\s\"'`]))-(?:users|home)-[^-/\s\"'`]+"),
)
"""What tells who somebody is: mail addresses and the folders that carry their names."""
