"""Wrong configurations: each problem is reported with its position, its key and what would be right."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multitower.account_names import user_name
from multitower.supervisor.config.loading import load
from multitower.supervisor.config.source import MAX_FILE_BYTES, MAX_PROBLEMS, ConfigError
from multitower.supervisor.config.value_syntax import RUNTIME_NAME_BYTES
from multitower.supervisor.loop.runtime_dir import MAX_IPC_PATH

MODEL = "models: [{name: digits, path: digits}]\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("digits", "empty", "other", "notes/1", "numbered/1"):
        (tmp_path / name).mkdir(parents=True)
    files = ("digits/saved_model.pb", "numbered/1/saved_model.pb", "other/variables")
    for name in (*files, "old.h5", "frozen.pb", "digits.keras", "ops.so"):
        (tmp_path / name).touch()
    for name in ("folder.keras", "folder.pb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "renamed.pb").write_bytes(b"\x08\x01\x12\xff")
    (tmp_path / "hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems_of(text: str | bytes) -> list[str]:
    Path("x.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load("x.yaml", environment={})
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem).removeprefix("x.yaml:") for problem in caught.value.problems]


def only_problem(text: str | bytes) -> str:
    (problem,) = problems_of(text)
    return problem


DAEMON = [
    ("worker_per_device: 2", "2:1: worker_per_device: unknown key (did you mean 'workers_per_device'?)"),
    ("xyzzy: 2", "2:1: xyzzy: unknown key"),
    ("max_queue_delay: 5ms", "2:1: max_queue_delay: unknown key here; it belongs in models[].batching"),
    ("restart: {spares: 2}", "2:11: restart.spares: unknown key here; it belongs at the top of the file"),
    ("restart: {first: 1s}", "restart.first: unknown key here; it belongs in restart.backoff"),
    ("watch: {interval: 1}", "watch.interval: a duration needs its unit: write 1s"),
    ("watch: {interval: 1ms}", "watch.interval: must be at least 50ms, not 1ms; 0: never"),
    ("watch: {settle: 0}", "watch.settle: a duration needs its unit"),
    ("gateway: {http: '127.0.0.1:1', max_buffered_bytes: 0B}", "2:52: gateway.max_buffered_bytes: must be more than 0"),
    (
        "gateway: {http: '127.0.0.1:1', max_body_size: 3MiB, max_buffered_bytes: 5MiB}",
        "2:73: gateway.max_buffered_bytes: must be at least twice max_body_size, which is 3MiB",
    ),
    ("dispatch: 1", "2:11: dispatch: must be one of 'earliest_finish' or 'least_depth', not 1"),
    ("dispatch: least_dept", "2:11: dispatch: must be one of 'earliest_finish' or 'least_depth', not 'least_dept'"),
    ("workers_per_device: two", "2:21: workers_per_device: must be a whole number, not 'two'"),
    ("workers_per_device: '2'", "must be a whole number, not '2'"),
    ("workers_per_device: 2.0", "must be a whole number, not 2.0"),
    ("workers_per_device: true", "must be a whole number, not True"),
    ("workers_per_device: 0", "must be at least 1, not 0"),
    ("workers_per_device: 1000000", "must be at most 256"),
    ("spares: -1", "spares: must be at least 0, not -1"),
    ("spares:", "2:1: spares: has no value; leave the key out to take its default"),
    ("restart: {backoff: }", "2:11: restart.backoff: has no value"),
    ("insecure: yes", "2:11: insecure: must be true or false, not 'yes'"),
    ("insecure: 1", "insecure: must be true or false, not 1"),
    ("cores: splt", "cores: must be one of 'auto', 'split' or 'shared', not 'splt'"),
    ("threads: 4", "2:10: threads: must be a mapping of keys to values, not 4"),
    ("threads: {intra_op: 0}", "threads.intra_op: must be auto or a whole number from 1"),
    ("threads: {intra_op: none}", "threads.intra_op: must be auto or a whole number from 1"),
    ("restart: {window: 60}", "2:19: restart.window: a duration needs its unit: write 60s"),
    ("restart: {window: 0s}", "restart.window: must be longer than 0"),
    ("restart: {backoff: {max: 100ms}}", "restart.backoff.max: 100ms is less than first (500ms)"),
    ("restart: {backoff: {first: 60s}}", "restart.backoff.max: 30s is less than first (60s)"),
    ("max_message_size: 1B", "1B is less than 1KiB, the least"),
    ("max_message_size: 4000000GiB", "more than 1024GiB, the most"),
    ("max_connections: 0", "max_connections: must be auto or a whole number from 1 to 1000000, not 0"),
    ("max_connections: all", "2:18: max_connections: must be auto or a whole number from 1 to 1000000, not 'all'"),
    ("peer_timeout: 100ms", "must be from 200ms to 24h, not 100ms; 0: never"),
    ("spin: 2ms", "2:7: spin: must be at most 1ms, not 2ms; 0: off"),
    ("max_message_size: 64", "a size needs its unit: write 64MiB"),
    ("memory: 6", "must be growth, a size (6GiB) or a percentage (80%), not 6"),
    ("memory: 0GiB", "a worker needs memory"),
    ("memory: 0%", "'0%' is not a percentage above 0% and up to 100%"),
    ("memory: 101%", "'101%' is not a percentage above 0% and up to 100%"),
    ("memory: much", "'much' is not a size"),
    ("devices: {cpu: 1}\nmemory: 50%", "3:9: memory: limits the memory of GPUs"),
    ("devices: none", "2:10: devices: must be all, a list of devices or {cpu: N}, not 'none'"),
    ("devices: []", "devices: the list is empty"),
    ("devices: {}", "2:10: devices: the key 'cpu' is missing"),
    ("devices: {cpu: 0}", "2:16: devices.cpu: must be at least 1, not 0"),
    (
        "devices: {gpu: 1}",
        "2:11: devices.gpu: unknown key; GPUs are all of them (devices: all) or listed (",
    ),
    ("devices: [[0, 1], []]", "2:19: devices[1]: the group is empty"),
    ("devices: [0, [1, -1]]", "2:18: devices[1][1]: -1 is not a device index"),
    ("devices: [[0, 1], [2, 1]]", "2:23: devices[1][1]: 1 is listed twice; workers_per_device"),
    ("devices: [[0, cpu:0]]", "2:11: devices[0]: the group mixes GPUs with CPU devices"),
    ("devices: [[[0]]]", "2:12: devices[0][0]: is a group within a group"),
    ("devices: [[0, {cpu: 1}]]", "devices[0][1]: must be an index (0) or a UUID"),
    ("devices: [[cpu:0, cpu:1]]\nmemory: 50%", "3:9: memory: limits the memory of GPUs"),
    ("devices: [cpu:256]", "'cpu:256' is not a CPU device: these are cpu:0 to cpu:255"),
    ("devices: ['0']", "devices[0]: '0' is text; an index is written without quotes"),
    ("devices: [0, -1]", "2:14: devices[1]: -1 is not a device index"),
    ("devices: [0, 1, 0]", "2:17: devices[2]: 0 is listed twice; workers_per_device"),
    ("devices: [MIG-3_]", "'MIG-3_' is neither an index (0) nor a UUID"),
    ("devices: [[MIG-3, MIG-4]]", "2:11: devices[0]: the group has MIG slices; a worker can use one slice only"),
    ("devices: [[0, MIG-4]]", "2:11: devices[0]: the group has MIG slices"),
    ("devices: [cpu]", "{cpu: N} instead of the list is N of them"),
    ("devices: [8f3a]", "'8f3a' is neither an index (0) nor a UUID"),
    ("devices: [true]", "devices[0]: must be an index (0) or a UUID"),
    ("listen: []", "2:9: listen: must not be empty"),
    ("listen: 5555", "2:9: listen: must be an endpoint, as in tcp://127.0.0.1:5555, not 5555"),
    ("listen: tcp://0.0.0.0:5555", "2:9: listen: 0.0.0.0 can be reached from other machines"),
    ("listen: {a: 1}", "2:9: listen: must be an endpoint, as in tcp://127.0.0.1:5555, not"),
    ("listen: [5555]", "2:10: listen[0]: must be an endpoint, as in tcp://127.0.0.1:5555, not 5555"),
    ("listen: [http://x]", "it must begin with ipc:// or tcp://"),
    ("listen: ['tcp://127.0.0.1']", "must be tcp://HOST:PORT"),
    ("listen: ['tcp://127.0.0.1:0']", "the port 0 must be 1 to 65535"),
    ("listen: ['tcp://127.0.0.1:65536']", "the port 65536 must be 1 to 65535"),
    ("listen: ['tcp://[::1:5555']", "must be tcp://HOST:PORT"),
    ("listen: ['tcp://0.0.0.0:5555']", "2:10: listen[0]: 0.0.0.0 can be reached from other machines"),
    ("listen: ['tcp://*:5555']", "* can be reached from other machines"),
    ("listen: ['tcp://[::]:5555']", "[::] can be reached from other machines"),
    ("listen: ['tcp://192.168.1.5:5555']", "set 'insecure: true'"),
    ("listen: ['tcp://localhost.example:5555']", "can be reached from other machines"),
    ("listen: ['tcp://127.1:5555']", "can be reached from other machines"),
    ("listen: [ipc://a, ipc://./a]", "2:19: listen[1]: ipc://"),
    ("listen: ['ipc://@abstract']", "any user of the machine could connect"),
    ("listen: ['ipc://']", "must name a file"),
    ("listen: ['ipc://*']", "must name a file"),
    ("listen: [ipc://digits]", "is a folder; name the socket in it"),
    (f"listen: [ipc:///{'a' * MAX_IPC_PATH}]", "has 108 bytes; a socket's address allows 107"),
    (f"listen: ['ipc:///{'é' * 54}']", "has 109 bytes; a socket's address allows 107"),
    ("runtime_dir: /dev/null", "/dev/null is not a folder"),
    (f"runtime_dir: /{'a' * 100}", f"has 101 bytes; a socket's address allows {MAX_IPC_PATH - RUNTIME_NAME_BYTES}"),
    ("runtime_dir: 5", "must be the path of a folder, not 5"),
]


@pytest.mark.parametrize(("line", "problem"), DAEMON, ids=[line for line, _ in DAEMON])
def test_wrong_keys_of_the_daemon_are_reported(line: str, problem: str) -> None:
    assert problem in only_problem(MODEL + line)


MODELS = [
    ("name: a, handler: 'h:M', devices: cpu:0", "models[0].devices: must be all or a list of devices, as in [0, 2]"),
    ("name: a, handler: 'h:M', devices: []", "models[0].devices: the list is empty"),
    ("name: a, handler: 'h:M', devices: {cpu: 1}", "must be all or a list of devices, as in [0, 2] or [cpu:0], not"),
    ("name: a, handler: 'h:M', devices: [0, 0]", "models[0].devices[1]: 0 is listed twice"),
    ("name: a, handler: 'h:M', devices: [cpu:01]", "models[0].devices[0]: 'cpu:01' is not a CPU device"),
    ("name: a, path: nowhere", "1:26: models[0].path: {folder}/nowhere does not exist"),
    ("name: a, path: no/where", "no/where does not exist, nor does {folder}/no"),
    ("name: a, path: ~/model", "~ is not expanded, write the whole path"),
    ("name: a, path: empty", "neither itself nor in a numbered version folder: it is empty"),
    ("name: a, path: other", "in a numbered version folder: it holds variables"),
    ("name: a, path: notes", "in a numbered version folder: its versions (1) hold none"),
    ("name: a, path: digits/saved_model.pb", "name the folder that holds it, {folder}/digits"),
    ("name: a, path: frozen.pb, outputs: {y: 'y:0'}", 'models[0].inputs: a frozen graph needs it: {{x: "x:0"}}'),
    ("name: a, path: frozen.pb, inputs: {x: 'x:0'}", "models[0].outputs: a frozen graph needs it: {{scores: "),
    ("name: a, path: frozen.pb, inputs: {}, outputs: {y: y}", "models[0].inputs: must be a mapping of names to"),
    (
        "name: a, path: frozen.pb, inputs: ['x:0'], outputs: {y: y}",
        "must be a mapping of names to tensors, as in {{x: ",
    ),
    (
        "name: a, path: frozen.pb, inputs: {x: x, b: 5}, outputs: {y: y}",
        '1:55: models[0].inputs.b: must be a tensor of the graph, as in "softmax:0", not 5',
    ),
    ("name: a, path: frozen.pb, inputs: {'': x}, outputs: {y: y}", "models[0].inputs: a name must not be empty"),
    ("name: a, path: digits, inputs: {x: x}", "models[0].inputs: is allowed with a frozen graph (.pb, .pbtxt) only"),
    ("name: a, path: old.h5, outputs: {x: x}", "models[0].outputs: is allowed with a frozen graph (.pb, .pbtxt) only"),
    (
        "name: a, handler: 'm:C', outputs: {x: x}",
        "models[0].outputs: is allowed with a frozen graph (.pb, .pbtxt) only",
    ),
    (
        "name: a, path: x.yaml",
        "x.yaml is neither a model of Keras nor a frozen graph, by its contents; a model is a SavedModel folder or a "
        "file, usually .keras, .h5, .hdf5, .pb, .pbtxt",
    ),
    ("name: a, path: renamed.pb", "renamed.pb is a file of a SavedModel; name the folder that holds it"),
    ("name: a, path: hdf5, signature: s", "is allowed with a SavedModel only; a file of Keras has no signatures"),
    ("name: a, path: folder.keras, inputs: {x: x}", "models[0].inputs: is allowed with a frozen graph"),
    ("name: a, path: folder.pb, version_labels: {a: 1}", "folder of numbered versions only; "),
    (f"name: a, path: {'a' * 300}", "cannot be read: File name too long"),
    ("name: a, path: ''", "must be the path of a model, not ''"),
    ("name: a, path: 5", "must be the path of a model, not 5"),
    ("name: a", "1:10: models[0]: the key 'path' or 'handler' is missing"),
    ("name: a, pth: digits", "models[0].pth: unknown key (did you mean 'path'?)"),
    ("path: digits", "1:10: models[0]: the key 'name' is missing"),
    ("nam: a, path: digits", "1:11: models[0].nam: unknown key (did you mean 'name'?)"),
    ("name: a, path: digits, handler: 'm:C'", "models[0].handler: a model has a path or a handler, not both"),
    ("name: a b, path: digits", "'a b' is not a name"),
    ("name: -a, path: digits", "'-a' is not a name"),
    ("name: 5, path: digits", "5 is not a name"),
    (f"name: {'a' * 129}, path: digits", "is not a name: 1 to 128 letters"),
    ("name: a, handler: module", "'module' is not module:Class"),
    ("name: a, handler: 'm:C()'", "'m:C()' is not module:Class"),
    ("name: a, handler: 'm:C', parameters: [1]", "parameters: must be a mapping of keys to values, not [1]"),
    ("name: a, path: digits, parameters: {a: 1}", "models[0].parameters: is allowed with a handler only"),
    ("name: a, handler: 'm:C', signature: s", "models[0].signature: is allowed with a path only"),
    ("name: a, path: digits.keras, signature: s", "models[0].signature: is allowed with a SavedModel only"),
    ("name: a, path: old.h5, signature: s", "is allowed with a SavedModel only; a file of Keras has no signatures"),
    ("name: a, path: digits, signature: ''", "must be the name of a signature"),
    ("name: a, handler: 'm:C', tags: [serve]", "models[0].tags: is allowed with a SavedModel only"),
    ("name: a, path: old.h5, tags: [serve]", "models[0].tags: is allowed with a SavedModel only"),
    ("name: a, path: digits, tags: serve", "must be a list of tags, as in [serve, gpu], not 'serve'"),
    ("name: a, path: digits, tags: []", "must be a list of tags, as in [serve, gpu], not []"),
    ("name: a, path: digits, tags: [serve, 1]", "models[0].tags[1]: must be a tag of a MetaGraph, as in serve, not 1"),
    ("name: a, path: digits, tags: [a, a]", "models[0].tags[1]: 'a' is listed twice"),
    ("name: a, path: digits, warmup: no.npz", "models[0].warmup: {folder}/no.npz does not exist"),
    ("name: a, path: digits, warmup: digits.keras", "models[0].warmup: {folder}/digits.keras is not a .npz file"),
    ("name: a, path: digits, warmup: 5", "models[0].warmup: must be the path of a .npz file with inputs, not 5"),
    ("name: a, path: digits, custom_ops: [no.so]", "1:47: models[0].custom_ops[0]: {folder}/no.so does not exist"),
    ("name: a, path: digits, custom_ops: [digits.keras]", "custom_ops[0]: {folder}/digits.keras is not a .so file"),
    ("name: a, path: digits, custom_ops: [5]", "custom_ops[0]: must be the path of a .so file with operations, not 5"),
    (
        "name: a, path: digits, custom_ops: ops.so",
        "custom_ops: must be a list of libraries, as in [ops/libops.so]",
    ),
    ("name: a, path: digits, custom_ops: [ops.so, ./ops.so]", "models[0].custom_ops[1]: './ops.so' is listed twice"),
    ("name: a, handler: 'm:C', custom_ops: [ops.so]", "models[0].custom_ops: needs a path; a handler loads its"),
    ("name: a, path: digits, jit_compile: true", "models[0].jit_compile: needs batching.allowed_batch_sizes, since"),
    (
        "name: a, handler: 'm:C', jit_compile: true",
        "models[0].jit_compile: needs a SavedModel or a Keras file",
    ),
    (
        "name: a, path: frozen.pb, inputs: {x: x}, outputs: {y: y}, jit_compile: true",
        "models[0].jit_compile: needs a SavedModel or a Keras file",
    ),
    (
        "name: a, path: digits, placement: spread",
        "models[0].placement: must be one of 'towers' or 'as_saved', not 'spread'",
    ),
    ("name: a, handler: 'm:C', placement: as_saved", "models[0].placement: needs a path; a handler chooses"),
    ("name: a, handler: 'm:C', log_device_placement: true", "models[0].log_device_placement: needs a path"),
    ("name: a, path: digits, quarantine: 5", "models[0].quarantine: a duration needs its unit: write 5s"),
    ("name: a, path: digits, max_execution_time: 0s", "models[0].max_execution_time: must be longer than 0"),
    ("name: a, path: digits, retry: 6", "models[0].retry: must be at most 5, not 6"),
    ("name: a, path: digits, retry: -1", "models[0].retry: must be at least 0, not -1"),
    ("name: a, path: digits, batching: 5", "batching: must be a mapping of keys to values, not 5"),
    ("name: a, path: digits, batching: {max_batch_size: -1}", "batching.max_batch_size: must be at least 0, not -1"),
    (
        "name: a, path: digits, batching: {max_batch_size: 0, allowed_batch_sizes: [1]}",
        "batching.allowed_batch_sizes: needs batches, but max_batch_size is 0",
    ),
    (
        "name: a, path: digits, batching: {pad_variable_length_inputs: 1}",
        "batching.pad_variable_length_inputs: must be true or false, not 1",
    ),
    ("name: a, path: digits, batching: {trust: 1}", "1:52: models[0].batching.trust: must be true or false, not 1"),
    (
        "name: a, path: digits, batching: {allowed_batch_sizes: [1, 8]}",
        "1:70: models[0].batching.allowed_batch_sizes[1]: the last size must be max_batch_size, 32, not 8",
    ),
    (
        "name: a, path: digits, batching: {allowed_batch_sizes: [8, 8, 32]}",
        "batching.allowed_batch_sizes[1]: 8 after 8: the sizes must ascend",
    ),
    ("name: a, path: digits, batching: {allowed_batch_sizes: 32}", "allowed_batch_sizes: must be a list"),
    ("name: a, path: digits, batching: {max_queue_delay: 5}", "write 5s"),
    ("name: a, path: digits, queue: {timeout: 0s}", "models[0].queue.timeout: must be longer than 0"),
    ("name: a, path: digits, queue: {max_bytes: 0B}", "models[0].queue.max_bytes: must be more than 0"),
    ("name: a, path: digits, queue: {max_size: 0}", "models[0].queue.max_size: must be at least 1, not 0"),
    ("name: a, path: digits, timeout: 5s", "models[0].timeout: unknown key here; it belongs in models[].queue"),
    (
        "name: a, path: digits, versions: all",
        "versions: is allowed with a folder of numbered versions only; {folder}/digits",
    ),
    ("name: a, path: digits.keras, versions: all", "versions: is allowed with a folder of numbered versions only"),
    ("name: a, handler: 'm:C', versions: {latest: 2}", "versions: is allowed with a path only"),
    ("name: a, handler: 'm:C', version_labels: {a: 2}", "version_labels: is allowed with a path only"),
    (
        "name: a, path: numbered, versions: [1, 3]",
        "models[0].versions: must be latest, all, {{latest: N}} or {{specific: [N, …]}}, not [1, 3]",
    ),
    ("name: a, path: numbered, versions: newest", "versions: must be latest, all, {{latest: N}} or"),
    ("name: a, path: numbered, versions: {all: 1}", "versions: must be latest, all, {{latest: N}} or"),
    (
        "name: a, path: numbered, versions: {latest: 1, specific: [1]}",
        "versions: must be latest, all, {{latest: N}} or",
    ),
    ("name: a, path: numbered, versions: {latest: 0}", "versions: latest is how many versions: a whole number from 1"),
    ("name: a, path: numbered, versions: {specific: 1}", "versions: specific is a list of versions, as in"),
    ("name: a, path: numbered, versions: {specific: []}", "versions: specific is a list of versions, as in"),
    (
        "name: a, path: numbered, versions: {specific: [1, -1]}",
        "1:61: models[0].versions.specific[1]: must be the number of a version, not -1",
    ),
    ("name: a, path: numbered, versions: {specific: [1, 1]}", "versions.specific[1]: 1 is listed twice"),
    ("name: a, path: numbered, version_labels: stable", "version_labels: must be a mapping of labels to versions"),
    ("name: a, path: numbered, version_labels: {stable: '1'}", "stable: must be the number of a version, not '1'"),
    ("name: a, path: numbered, version_labels: {1: 1}", "version_labels: a key must be text, and 1 is not"),
    (
        "name: a, path: numbered, versions: {specific: [1, 3]}, version_labels: {new: 4}",
        "1:88: models[0].version_labels.new: names version 4, which `versions` does not list, only 1, 3",
    ),
    (
        "name: a, path: digits}, {name: a, path: digits",
        "1:42: models[1].name: 'a' is the name of a model above as well",
    ),
    ("name: a, path: digits}, 5, {name: b, path: digits", "models[1]: must be a mapping of keys to values, not 5"),
]


@pytest.mark.parametrize(("model", "problem"), MODELS, ids=[model[:60] for model, _ in MODELS])
def test_wrong_keys_of_a_model_are_reported(folder: Path, model: str, problem: str) -> None:
    assert problem.format(folder=folder) in only_problem(f"models: [{{{model}}}]")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n", "1:1: the file holds a list, not a mapping of keys to values"),
        ("model\n", "the file holds 'model', not a mapping"),
        ("spares: 1\n", "1:1: the key 'models' is missing"),
        (
            "models: {name: a, path: b}\n",
            "1:9: models: must be a list, of which each entry begins with '- ', not {'name': 'a', 'path': 'b'}",
        ),
        ("model: []\n", "1:1: model: unknown key (did you mean 'models'?)"),
        ("models: []\n", "1:9: models: must not be empty"),
        ("models:\n", "1:1: models: has no value"),
        ("models: digits\n", "models: must be a list"),
        ("models: {name: a}\n", "models: must be a list"),
        (b"# caf\xe9\n" + MODEL.encode(), "1:6: is not UTF-8 (byte 0xe9); save it as UTF-8"),
        (MODEL.encode("utf-16"), "1:1: is not UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), "is over 256 KiB, which no configuration needs"),
        (MODEL + "---\n" + MODEL, "2:1: holds a second YAML document"),
        (MODEL + "\tspares: 1\n", "indent with spaces, not with tabs"),
    ],
    ids=range(16),
)
def test_files_that_are_wrong_as_a_whole_are_reported(text: str | bytes, problem: str) -> None:
    assert problem in only_problem(text)


def test_a_byte_order_mark_is_accepted() -> None:
    Path("x.yaml").write_bytes(b"\xef\xbb\xbf" + MODEL.encode())
    assert load("x.yaml", environment={}).models[0].name == "digits"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("y.yaml", "y.yaml: there is no such file in {folder} (did you mean 'x.yaml'?)"),
        ("sub/x.yaml", "sub/x.yaml: there is no such file, nor can the folder {folder}/sub be read"),
        ("digits", "digits: is a folder; name the YAML file"),
        ("x.yaml/y", "x.yaml/y: cannot be read: Not a directory"),
        ("a\0b", "cannot be read: embedded null byte"),
        ("a" * 300, "cannot be read: File name too long"),
    ],
)
def test_files_that_cannot_be_read_are_reported(folder: Path, name: str, problem: str) -> None:
    Path("x.yaml").write_text(MODEL)
    with pytest.raises(ConfigError) as caught:
        load(name, environment={})
    assert problem.format(folder=folder) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            "models: [{name: a, path: bad}]",
            r"bad has no saved_model.pb, neither itself nor in a numbered version folder: ",
        ),
        ("models: [{name: a, path: nowhere}]", r"/\xff/nowhere does not exist"),
        ("models: [{name: a, handler: 'm:C', warmup: x.npz}]", r"/\xff/x.npz does not exist"),
        ("listen: ['ipc://front.sock']\n" + MODEL, r"/\xff/front.sock is not UTF-8"),
        ("runtime_dir: run\n" + MODEL, r"/\xff/run is not UTF-8"),
    ],
)
def test_file_names_that_are_not_utf8_appear_escaped_in_problems(folder: Path, settings: str, problem: str) -> None:
    inner = folder / os.fsdecode(b"\xff")
    (inner / "bad" / os.fsdecode(b"a\xfe")).mkdir(parents=True)
    (inner / "digits").mkdir()
    (inner / "digits" / "saved_model.pb").touch()
    (inner / "x.yaml").write_text(settings)
    with pytest.raises(ConfigError) as caught:
        load(inner / "x.yaml", environment={})
    (line,) = str(caught.value).encode().decode().splitlines()  # it can be printed
    assert line.startswith(f"{folder}/\\xff/x.yaml:1:")
    assert problem in line


def test_a_file_without_read_permission_is_reported_with_who_may_not(folder: Path) -> None:
    Path("x.yaml").write_text(MODEL)
    Path("x.yaml").chmod(0)
    me = os.geteuid()
    os.seteuid(65534 if me == 0 else me)  # root may read everything
    try:
        with pytest.raises(ConfigError) as refused:
            load("x.yaml", environment={})
        user = user_name(os.geteuid())
    finally:
        os.seteuid(me)
    why = f"Permission denied, for user {user}; its mode or that of a folder above it forbids it"
    assert str(refused.value) == f"x.yaml: cannot be read: {why}"


def test_all_problems_are_reported_in_the_order_of_the_file() -> None:
    text = """\
listen: [tcp://0.0.0.0:1, x, tcp://127.0.0.1:1]
spares: 1
spares: many
devices: [0, '1', [true]]
restart:
  window: 1d
  backof: {first: 1s}
models:
  - name: a
    path: nowhere
    queue: {timeout: 5}
  - nam: b
    handler: x
"""
    places = [problem.split(": ")[:2] for problem in problems_of(text)]
    assert places == [
        ["1:10", "listen[0]"],
        ["1:27", "listen[1]"],
        ["3:1", "spares"],
        ["4:14", "devices[1]"],
        ["4:20", "devices[2][0]"],
        ["6:11", "restart.window"],
        ["7:3", "restart.backof"],
        ["10:11", "models[0].path"],
        ["11:22", "models[0].queue.timeout"],
        ["12:5", "models[1].nam"],
        ["13:14", "models[1].handler"],
    ]


def test_a_problem_in_an_anchor_is_reported_at_the_anchor() -> None:
    text = "models:\n  - {name: a, path: digits, queue: &q {timeout: 5}}\n  - {name: b, path: digits, queue: *q}\n"
    assert [problem.split(": ")[:2] for problem in problems_of(text)] == [
        ["2:49", "models[0].queue.timeout"],
        ["2:49", "models[1].queue.timeout"],
    ]


def test_at_most_100_problems_are_reported() -> None:
    problems = problems_of(MODEL + "\n".join(f"zz{number}: 1" for number in range(MAX_PROBLEMS + 50)))
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1].endswith("and 50 more problems")


def test_long_values_are_abbreviated_in_problems() -> None:
    long = "x" * 10_000
    text = f"{long}: 1\nspares: {long}\ncores: {long}\nlisten: [{long}]\ndevices: [{long}]\nmemory: {long}\n"
    for problem in problems_of(text + f"drain_timeout: {long}\nmodels: [{{name: {long}, handler: {long}}}]\n"):
        assert len(problem) < 400


@pytest.mark.parametrize("devices", ["{cpu: 2}", "[cpu:0, cpu:1]", "[[cpu:0, cpu:1]]"])
def test_devices_of_a_model_must_be_devices_of_the_daemon(devices: str) -> None:
    first = f"devices: {devices}\nmodels:\n- {{name: a, handler: 'h:M'}}\n"
    text = first + "- {name: b, handler: 'h:M', devices: [cpu:1, cpu:2, 0]}\n"
    assert problems_of(text) == [
        "4:46: models[1].devices[1]: cpu:2 is not one of the daemon's devices, cpu:0, cpu:1",
        "4:53: models[1].devices[2]: 0 is not one of the daemon's devices, cpu:0, cpu:1",
    ]
