"""The config: file, environment, defaults; and one clear line for what is wrong."""

from pathlib import Path

import msgspec
import pytest

from asynclm.adapters.tools.options import Options
from asynclm.cml.machine import POLICIES
from asynclm.cml.machine import Limits as RunLimits
from asynclm.cml.tools import Effect
from asynclm.proxy import config as config_module
from asynclm.proxy.config import Config, Limits, Model, Server, Tool, UnknownModelError, Upstream, load
from asynclm.proxy.config_error import ConfigError

ISSUE = """
[server]
host = "127.0.0.1"
port = 8787

[upstreams.main]
kind = "openai"                      # openai | anthropic | simulated
base_url = "http://127.0.0.1:9100/v1"
api_key_env = "OPENAI_API_KEY"       # absent: the client's own key goes through

[models."*"]                         # by the client's model name, exact name before "*"
upstream = "main"
# model = "gpt-4o"                   # optional: another name upstream
# policy = "auto"

[[tools]]
python = "path/or/module.py:function"   # relative to this file; a module name works too
"""

TWO = '[upstreams.main]\n[upstreams.local]\nbase_url = "http://localhost:1234/v1"\n'


@pytest.fixture
def read(tmp_path):
    def read(text: str | None = None, **environ: str) -> Config:
        if text is not None:
            (tmp_path / "asynclm.toml").write_text(text, encoding="utf-8")
        return load(None, environ, tmp_path)

    return read


@pytest.fixture
def refused(read, tmp_path):
    def refused(text: str | None = None, **environ: str) -> str:
        with pytest.raises(ConfigError) as caught:
            read(text, **environ)
        message = str(caught.value)
        assert "\n" not in message
        return message.replace(f"{tmp_path}/", "")

    return refused


class TestFile:
    def test_the_issues_example(self, read, tmp_path):
        config = read(ISSUE, OPENAI_API_KEY="sk-1")
        assert config.server == Server()
        assert config.upstreams == {
            "main": Upstream(kind="openai", base_url="http://127.0.0.1:9100/v1", api_key_env="OPENAI_API_KEY")
        }
        assert config.models == {"*": Model(upstream="main", policy="auto")}
        assert config.tools == (Tool(python="path/or/module.py:function"),)
        assert config.base == tmp_path
        assert config.source == tmp_path / "asynclm.toml"
        assert config.warnings == ()

    def test_nothing_at_all(self, read, tmp_path):
        config = read(OPENAI_API_KEY="sk-1")
        assert config.upstreams == {
            "main": Upstream(base_url="https://api.openai.com/v1", api_key_env="OPENAI_API_KEY")
        }
        assert config.models == {"*": Model(upstream="main")}
        assert (config.server, config.limits, config.tools) == (Server(), Limits(), ())
        assert (config.base, config.source) == (tmp_path, None)
        assert config.upstreams["main"].api_key({"OPENAI_API_KEY": " sk-1\n"}) == "sk-1"

    def test_everything_that_can_be_set(self, read):
        config = read(
            """
            [server]
            host = "::1"
            port = 0
            max_body_bytes = 1000
            heartbeat_s = 5
            run_timeout_s = 0.5
            grace_s = 0
            [upstreams.a]
            kind = "anthropic"
            connect_timeout_s = 1
            idle_timeout_s = 2
            retries = 0
            headers = { x-team = "blue" }
            query = { api-version = "1" }
            stop_sequences = 0
            [upstreams.b]
            base_url = "http://[::1]:8000/v1/"
            prefill = "continue_final_message"
            [upstreams.c]
            kind = "simulated"
            ttft_ms = 10
            tpot_ms = 0
            [models.fast]
            upstream = "c"
            model = "faster"
            policy = "sync"
            [limits]
            concurrency = 1
            tool_timeout_s = 1.5
            queue_timeout_s = 2
            max_result_bytes = 256
            max_resumes = 0
            max_calls = 1
            max_empty_traps = 2
            max_forgeries = 4
            max_output_chars = 5
            cml_tokens = 0
            [runs]
            keep = 0
            [[tools]]
            python = "a.py:f"
            name = "g"
            description = ""
            estimate_ms = 20
            timeout_s = 3
            concurrency = 2
            effect = "read_only"
            cache_s = 60
            [[tools]]
            python = "b:f"
            """
        )
        assert config.server == Server(
            host="::1", port=0, max_body_bytes=1000, heartbeat_s=5, run_timeout_s=0.5, grace_s=0
        )
        assert config.upstreams["a"].base_url == "https://api.anthropic.com"
        assert config.upstreams["a"].headers == {"x-team": "blue"}
        assert config.upstreams["b"].base_url == "http://[::1]:8000/v1"
        assert (config.upstreams["c"].base_url, config.upstreams["c"].ttft_ms) == (None, 10)
        assert config.models == {"fast": Model(upstream="c", model="faster", policy="sync")}
        assert config.limits.of_a_run() == RunLimits(
            max_resumes=0, max_calls=1, max_empty_traps=2, max_forgeries=4, max_output_chars=5
        )
        assert config.runs.keep == 0
        first, second = config.tools
        assert first.over(Options()) == Options(
            name="g",
            description="",
            estimate_ms=20,
            timeout_s=3,
            concurrency=2,
            effect=Effect.READ_ONLY,
            cache_s=60,
        )
        assert (second.python, second.name) == ("b:f", None)

    def test_a_named_file_and_its_folder(self, tmp_path):
        path = tmp_path / "sub" / "my.toml"
        path.parent.mkdir()
        path.write_text("[server]\nport = 1\n")
        config = load(Path("sub/my.toml"), {}, tmp_path)
        assert (config.server.port, config.base) == (1, tmp_path / "sub")

    def test_a_named_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match=r"no\.toml: the config can't be read: No such file"):
            load(Path("no.toml"), {}, tmp_path)
        with pytest.raises(ConfigError, match="the config can't be read: Is a directory"):
            load(tmp_path, {}, tmp_path)

    def test_a_folder_or_a_dead_link_in_the_place_of_the_file(self, refused, tmp_path):
        (tmp_path / "asynclm.toml").mkdir()
        assert refused() == "asynclm.toml: the config can't be read: Is a directory"
        (tmp_path / "asynclm.toml").rmdir()
        (tmp_path / "asynclm.toml").symlink_to(tmp_path / "nothing")
        assert refused() == "asynclm.toml: the config can't be read: No such file or directory"

    def test_a_byte_order_mark(self, read, tmp_path):
        (tmp_path / "asynclm.toml").write_bytes(b"\xef\xbb\xbf[server]\nport = 1\n")
        assert read().server.port == 1

    def test_a_file_that_is_no_toml(self, refused, tmp_path):
        assert refused("[server]\nport = \n") == "asynclm.toml: not valid TOML: Invalid value (at line 2, column 8)"
        (tmp_path / "asynclm.toml").write_bytes(b"\xff\xfe")
        assert refused() == "asynclm.toml: the config is not UTF-8 text"

    def test_defaults_agree_with_the_run_machine(self):
        assert Limits().of_a_run() == RunLimits()
        policies = set(msgspec.inspect.type_info(config_module.PolicyName).values)
        assert policies == {*POLICIES, "off"}


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[sever]", "sever: unknown section; did you mean 'server'?"),
            ("port = 3", "port: unknown section"),
            ("[server]\nprot = 1", "server.prot: unknown key; did you mean 'port'?"),
            ("[server]\nxyz = 1", "server.xyz: unknown key"),
            ("server = 1", "server: must be a table"),
            ("upstreams = 1", "upstreams: must be tables, each with a name: [upstreams.NAME]"),
            ("[upstreams]\nkind = 1", "upstreams.kind: must be a table"),
            ("[tools]\npython = 'a:b'", "tools: must be a list of tables: [[tools]]"),
            ("tools = [1]", "tools[0]: must be a table"),
            ("[server]\nport = '1'", "server.port: expected whole number, got string"),
            ("[server]\nport = 70000", "server.port: expected whole number <= 65535"),
            ("[server]\nport = -1", "server.port: expected whole number >= 0"),
            ("[server]\nhost = ''", "server.host: must not be empty"),
            ("[server]\nheartbeat_s = nan", "server.heartbeat_s: expected number > 0.0"),
            ("[server]\nheartbeat_s = inf", "server.heartbeat_s: expected number <= 31536000.0"),
            ("[server]\nheartbeat_s = 2024-01-01", "server.heartbeat_s: expected number, got date"),
            ("[limits]\nmax_result_bytes = 3", "limits.max_result_bytes: expected whole number >= 256"),
            (
                "[upstreams.main]\nkind = 'azure'",
                "upstreams.main.kind: 'azure' is not one of openai, anthropic, transformers, simulated",
            ),
            (
                "[upstreams.main]\nheaders = {a = 1}",
                "upstreams.main.headers: expected string, got whole number",
            ),
            ("[upstreams.main]\nheaders = {'a b' = ''}", "upstreams.main.headers: 'a b' can't be the name of a header"),
            (
                '[upstreams.main]\nheaders = {a = "sk-1\\n"}',
                "upstreams.main.headers: the value of 'a' holds characters that a header can't have",
            ),
            (
                "[upstreams.main]\napi_key_env = 'sk-proj-123'",
                "upstreams.main.api_key_env: must be the name of an environment variable, in capitals; "
                "the key itself doesn't go into the config",
            ),
            ("[upstreams.main]\ninject = true", 'upstreams.main.inject: only for kind = "simulated"'),
            (
                "[upstreams.main]\nkind = 'simulated'\nbase_url = 'http://a'",
                "upstreams.main.base_url: the simulated model runs in the process and has none",
            ),
            (
                "[upstreams.main]\nkind = 'anthropic'\nprefill = 'prefix'",
                'upstreams.main.prefill: only for kind = "openai"',
            ),
            (
                "[upstreams.main]\nkind = 'anthropic'\nprompt_cache_key = true",
                'upstreams.main.prompt_cache_key: only for kind = "openai"',
            ),
            (
                "[models.'*']\npolicy = 'forks'",
                "models.\"*\".policy: 'forks' is not one of sync, parallel, immediate, coalesce, fork, auto, off",
            ),
            (
                "[models.'gpt-4.1']\npolicy = 'x'",
                "models.\"gpt-4.1\".policy: 'x' is not one of sync, parallel, immediate, coalesce, fork, auto, off",
            ),
            (
                "[upstreams.main]\n[models.'*']\nupstream = 'mian'",
                "models.\"*\".upstream: there is no upstream 'mian'; did you mean 'main'?",
            ),
            (
                TWO + "[models.a]\nupstream = 'xyz'",
                "models.a.upstream: there is no upstream 'xyz'; use main, local",
            ),
            (TWO, 'models."*".upstream: there are several upstreams, so say which: main, local'),
            (
                "[[tools]]\nname = 'f'",
                'tools[0]: must say where the tool is: python = "path/to/file.py:function", '
                'openapi = "file or address", or mcp = {...}',
            ),
            (
                "[[tools]]\npython = 'a:f'\nopenapi = 'b'",
                "tools[0].openapi: python is there already; a table is for one source of tools",
            ),
            ("[[tools]]\nopenapi = 'b'\nname = 'f'", "tools[0].name: is for python, not for openapi"),
            ("[[tools]]\npython = 'a:f'\ninclude = ['b']", "tools[0].include: is for openapi and mcp, not for python"),
            ("[[tools]]\npython = 'a:f'\nhttp = {retries = 1}", "tools[0].http: is for openapi, not for python"),
            (
                "[[tools]]\nopenapi = 'b'\nhttp = {base_url = 'b'}",
                "tools[0].http.base_url: must be an http:// or https:// address, such as https://api.example.com/v1",
            ),
            (
                "[[tools]]\nopenapi = 'b'\nhttp = {retry = 1}",
                "tools[0].http: object contains unknown field retry",
            ),
            (
                "[[tools]]\nopenapi = 'b'\noverrides = {f = {efect = 'read_only'}}",
                "tools[0].overrides: object contains unknown field efect",
            ),
            (
                "[[tools]]\nopenapi = 'b'\nprefix = 'a-b'",
                "tools[0].prefix: must be an identifier: letters, digits and underscores",
            ),
            (
                "[[tools]]\npython = 'a:f'\n[[tools]]\npyton = 'a:f'",
                "tools[1].pyton: unknown key; did you mean 'python'?",
            ),
            (
                "[[tools]]\npython = 'a:f'\neffect = 'none'",
                "tools[0].effect: 'none' is not one of read_only, idempotent, effectful",
            ),
            ("[[tools]]\npython = 'a:f'\ntimeout_s = 0", "tools[0].timeout_s: expected number > 0.0"),
        ],
    )
    def test_file_key_and_reason(self, refused, text, message):
        assert refused(text) == f"asynclm.toml: {message}"

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("api.openai.com/v1", "must be an http:// or https:// address, such as"),
            ("ftp://host/v1", "must be an http:// or https:// address"),
            ("http://", "must be an http:// or https:// address"),
            ("http://host:99999/v1", "must be an http:// or https:// address"),
            ("http://host:0/v1", "must be an http:// or https:// address"),
            ("http://[::1/v1", "must be an http:// or https:// address"),
            ("http://ho st/v1", "holds characters that an address can't have"),
            ("http://user:sk-secret@host/v1", "must not hold a user name or password"),
            ("http://host/v1#x", "must not hold a fragment"),
        ],
    )
    def test_addresses(self, refused, url, why):
        message = refused(f"[upstreams.main]\nbase_url = '{url}'")
        assert message.startswith("asynclm.toml: upstreams.main.base_url: ")
        assert why in message
        assert "sk-secret" not in message


class TestEnvironment:
    def test_over_the_file_and_without_one(self, read):
        assert read("[server]\nport = 1\nhost = 'a'\n", ASYNCLM_SERVER_PORT="2").server == Server(port=2, host="a")
        assert read("", ASYNCLM_SERVER__HEARTBEAT_S="2.5").server.heartbeat_s == 2.5
        assert read("", ASYNCLM_LIMITS_MAX_RESUMES="7").limits.max_resumes == 7
        assert read("", ASYNCLM_RUNS_KEEP="0").runs.keep == 0

    @pytest.mark.parametrize("section", ["server", "limits", "runs"])
    def test_every_key_of_the_single_tables(self, read, section):
        for field in msgspec.structs.fields(type(getattr(Config(), section))):
            value = getattr(getattr(Config(), section), field.name)
            config = read("", **{f"ASYNCLM_{section.upper()}_{field.name.upper()}": str(value)})
            assert getattr(getattr(config, section), field.name) == value

    def test_every_key_of_an_upstream(self, read):
        config = read(
            TWO + "[models.'*']\nupstream = 'main'",
            ASYNCLM_UPSTREAMS_MAIN_KIND="openai",
            ASYNCLM_UPSTREAMS_MAIN_BASE_URL="http://127.0.0.1:1/v1",
            ASYNCLM_UPSTREAMS_MAIN_API_KEY_ENV="KEY",
            ASYNCLM_UPSTREAMS__MAIN__CONNECT_TIMEOUT_S="1",
            ASYNCLM_UPSTREAMS_MAIN_IDLE_TIMEOUT_S="2",
            ASYNCLM_UPSTREAMS_MAIN_RETRIES="3",
            ASYNCLM_UPSTREAMS_MAIN_HEADERS='{"a": "1"}',
            ASYNCLM_UPSTREAMS_MAIN_QUERY='{"b": "2"}',
            ASYNCLM_UPSTREAMS_MAIN_PREFILL="prefix",
            ASYNCLM_UPSTREAMS_MAIN_STOP_SEQUENCES="4",
            KEY="sk-1",
        )
        assert config.upstreams["main"] == Upstream(
            kind="openai",
            base_url="http://127.0.0.1:1/v1",
            api_key_env="KEY",
            connect_timeout_s=1,
            idle_timeout_s=2,
            retries=3,
            headers={"a": "1"},
            query={"b": "2"},
            prefill="prefix",
            stop_sequences=4,
        )
        assert config.upstreams["local"].base_url == "http://localhost:1234/v1"

    def test_new_tables(self, read):
        config = read(ASYNCLM_UPSTREAMS_MY_BOX_KIND="simulated", ASYNCLM_UPSTREAMS_MY_BOX_TTFT_MS="5")
        assert config.upstreams == {"my_box": Upstream(kind="simulated", ttft_ms=5)}
        assert config.models == {"*": Model(upstream="my_box")}

    def test_an_address_alone_takes_no_key_along(self, read):
        config = read(ASYNCLM_UPSTREAMS_MAIN_BASE_URL="http://elsewhere/v1", OPENAI_API_KEY="sk-1")
        assert config.upstreams["main"].api_key({"OPENAI_API_KEY": "sk-1"}) is None

    def test_names_that_are_not_plain(self, read):
        config = read(
            "[models.'gpt-4.1']\n[models.'*']\n",
            ASYNCLM_MODELS_GPT_4_1_POLICY="sync",
            ASYNCLM_MODELS__GPT_4_1__MODEL="other",
            ASYNCLM_MODELS_ANY_POLICY="parallel",
        )
        assert config.models["gpt-4.1"] == Model(upstream="main", model="other", policy="sync")
        assert config.models["*"].policy == "parallel"

    def test_whole_sections_and_what_is_set_in_them(self, read):
        config = read(
            "[[tools]]\npython = 'a:f'\n[server]\nport = 1\n",
            ASYNCLM_TOOLS='[{"python": "b:g", "estimate_ms": 5}]',
            ASYNCLM_SERVER='{"host": "h"}',
            ASYNCLM_SERVER_GRACE_S="1",
        )
        assert config.tools == (Tool(python="b:g", estimate_ms=5),)
        assert config.server == Server(host="h", grace_s=1)

    def test_empty_counts_as_not_set(self, read):
        assert read("[server]\nport = 1", ASYNCLM_SERVER_PORT="").server.port == 1

    @pytest.mark.parametrize(
        ("variable", "value", "message"),
        [
            ("SERVER_PORT", "abc", "expected whole number, got string"),
            ("SERVER_PORT", "70000", "expected whole number <= 65535"),
            ("SERVER_PORT", "1.5", "expected whole number, got string"),
            ("SERVER_PROT", "1", "no key is called 'prot'; did you mean 'port'?"),
            ("RUNS_XYZ", "1", "no key is called 'xyz': keep"),
            ("SERVER_HEARTBEAT_S", "nan", "expected number > 0.0"),
            ("UPSTREAMS_MAIN_KIND", "azure", "'azure' is not one of openai, anthropic, transformers, simulated"),
            ("MODELS_ANY_POLICY", "forks", "'forks' is not one of sync, parallel"),
            ("UPSTREAMS_MAIN_HEADERS", "{sk-1", "must be JSON: "),
            ("UPSTREAMS_MAIN_HEADERS", '{"a": 1}', "expected string, got whole number"),
            ("UPSTREAMS_MAIN_BASEURL", "http://a", "must end with a name and one of the keys KIND, BASE_URL"),
            ("UPSTREAMS_BASE_URL", "http://a", "must end with a name and one of the keys"),
            ("UPSTREAMS__MAIN__BASEURL", "http://a", "no key is called 'baseurl'; did you mean 'base_url'?"),
            ("TOOLS", "b:g", "must be JSON: "),
            ("TOOLS", "{}", "must be a JSON array"),
            ("SERVER", "[]", "must be a JSON object"),
            ("TOOLS_PYTHON", "a:f", "ASYNCLM_TOOLS takes the whole list, as JSON"),
        ],
    )
    def test_errors_name_the_variable(self, refused, variable, value, message):
        found = refused("", **{f"ASYNCLM_{variable}": value})
        assert found.startswith(f"environment variable ASYNCLM_{variable}: ")
        assert message in found
        assert "sk-1" not in found

    def test_errors_in_what_the_variable_set_name_it_too(self, refused):
        assert refused("", ASYNCLM_UPSTREAMS_MAIN_BASE_URL="host").startswith(
            "environment variable ASYNCLM_UPSTREAMS_MAIN_BASE_URL: upstreams.main.base_url: must be an http"
        )
        assert refused("", ASYNCLM_TOOLS='[{"pyton": "a:f"}]') == (
            "environment variable ASYNCLM_TOOLS: tools[0].pyton: unknown key; did you mean 'python'?"
        )
        assert refused("", ASYNCLM_UPSTREAMS_B_KIND="simulated", ASYNCLM_MODELS_ANY_UPSTREAM="a") == (
            "environment variable ASYNCLM_MODELS_ANY_UPSTREAM: models.\"*\".upstream: there is no upstream 'a'; use b"
        )
        assert refused("", ASYNCLM_UPSTREAMS_A_KIND="simulated", ASYNCLM_UPSTREAMS_B_KIND="simulated") == (
            'asynclm.toml: models."*".upstream: there are several upstreams, so say which: a, b'
        )

    def test_a_name_that_may_be_two(self, refused):
        text = "[upstreams.a-b]\n[upstreams.'a.b']\n[models.'*']\nupstream = 'a-b'"
        message = refused(text, ASYNCLM_UPSTREAMS_A_B_RETRIES="1")
        assert message == "environment variable ASYNCLM_UPSTREAMS_A_B_RETRIES: 'A_B' may be any of 'a-b', 'a.b'"

    def test_a_file_that_has_something_else_in_the_way(self, refused):
        assert refused("server = 1", ASYNCLM_SERVER_PORT="1") == "asynclm.toml: server: must be a table"
        assert refused("[upstreams]\nmain = 1", ASYNCLM_UPSTREAMS_MAIN_KIND="openai") == (
            "asynclm.toml: upstreams.main: must be a table"
        )

    def test_what_looks_like_a_typing_error_is_a_warning(self, read):
        config = read("[upstreams.main]", ASYNCLM_SERVR_PORT="1", ASYNCLM_UPSTREAM_MAIN_KIND="x")
        assert config.warnings == (
            "ASYNCLM_SERVR_PORT is not a key of the config; did you mean ASYNCLM_SERVER_...?",
            "ASYNCLM_UPSTREAM_MAIN_KIND is not a key of the config; did you mean ASYNCLM_UPSTREAMS_...?",
        )
        # What Kubernetes sets beside a service of this name.
        kubernetes = {
            "ASYNCLM_PORT": "tcp://10.0.0.1:80",
            "ASYNCLM_SERVICE_HOST": "10.0.0.1",
            "ASYNCLM_PORT_80_TCP": "x",
        }
        assert read("[upstreams.main]", **kubernetes).warnings == ()

    @pytest.mark.parametrize(
        ("variable", "value"), [("BOGUS", "secret"), ("PORT", "8080"), ("", "x"), ("KEY", "x"), ("MY_PORT", "80")]
    )
    def test_what_names_no_section_is_a_warning(self, read, variable, value):
        assert read("[upstreams.main]", **{f"ASYNCLM_{variable}": value}).warnings == (
            f"ASYNCLM_{variable} is not a key of the config and changes nothing; "
            "its sections are server, limits, runs, store, cache, conversations, recording, replay, upstreams, models, "
            "tools",
        )


class TestKeys:
    def test_a_query_in_the_address(self, read):
        config = read(
            "[upstreams.main]\nbase_url = 'https://x.example/openai/?api-version=1&a=2'\nquery = { a = '3' }\n"
        )
        upstream = config.upstreams["main"]
        assert (upstream.base_url, upstream.query) == ("https://x.example/openai", {"api-version": "1", "a": "3"})

    def test_a_key_that_is_not_set_is_a_warning(self, read):
        for environ in ({}, {"OPENAI_API_KEY": " "}):
            config = read(ISSUE, **environ)
            assert config.warnings == (
                "upstreams.main.api_key_env: OPENAI_API_KEY is not set; the clients' own keys go through",
            )
            assert config.upstreams["main"].api_key(environ) is None

    def test_keys_stay_out_of_every_repr(self, read):
        config = read(
            "[upstreams.main]\napi_key_env = 'KEY'\n"
            "headers = { api-key = 'sk-secret-1' }\nquery = { key = 'sk-secret-2' }\n",
            KEY="sk-secret-3",
        )
        assert config.upstreams["main"].api_key({"KEY": "sk-secret-3"}) == "sk-secret-3"
        for shown in (
            repr(config),
            str(config),
            f"{config.upstreams}",
            repr(list(config.upstreams["main"].__rich_repr__())),
        ):
            assert "api-key" in shown
            assert "sk-secret" not in shown


class TestModels:
    def test_the_exact_name_comes_before_the_star(self, read):
        config = read(
            TWO
            + "[models.'*']\nupstream = 'main'\n[models.fast]\nupstream = 'local'\nmodel = 'qwen3'\npolicy = 'sync'\n"
        )
        assert config.resolve_model("gpt-5") == (config.models["*"], "main", "gpt-5")
        entry, upstream, model = config.resolve_model("fast")
        assert (entry.policy, upstream, model) == ("sync", "local", "qwen3")

    def test_unknown_names(self, read):
        config = read("[models.gpt-4o]\n[models.other]\n")
        with pytest.raises(UnknownModelError, match=r"^The model 'gpt-4' does not exist; did you mean 'gpt-4o'\?$"):
            config.resolve_model("gpt-4")
        with pytest.raises(UnknownModelError, match=r"'zzz' does not exist; use gpt-4o, other$"):
            config.resolve_model("zzz")
        with pytest.raises(UnknownModelError, match=r"^The model '\*' does not exist"):
            config.resolve_model("*")

    def test_the_upstream_may_be_left_out_where_there_is_one(self, read):
        assert read("[upstreams.x]\nkind = 'simulated'\n[models.a]\n").resolve_model("a").upstream == "x"
