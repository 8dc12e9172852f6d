"""A configuration made concrete on this machine: the settings that the daemon's parts are given.

`build_settings` resolves devices and chooses model versions. The daemon calls it at its start; a reload calls it again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from multitower.model_files import fingerprint
from multitower.spec import ModelSpec

from .config.config import Config, ModelConfig
from .config.version_folders import chosen_versions
from .loop.bounded_call import call_all_within
from .loop.log import event
from .machine.core_claims import CoreClaims
from .machine.cores import format_core_list
from .machine.devices import Device, Group, resolve
from .machine.discovery import discover
from .machine.placement import Placement, assign_models, cores_to_claim, place_workers_on, spare_environment
from .machine.process_limits import ProcessLimits
from .model_presence import DEVICES, MODEL, Waiting, present_devices, why_absent, without_devices
from .scheduling.pool import Rule
from .scheduling.queue import QueueLimits
from .workers.restart_budget import RestartPolicy
from .workers.settings import WorkerSettings

log = logging.getLogger("multitower.daemon")


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration made concrete on this machine: devices resolved, versions chosen.

    Attributes:
        config: the configuration that these settings come from.
        devices: all devices of the daemon.
        placements: one for each slot, numbered from 0.
        worker_settings: the settings of the worker processes, including the models that they load.
        limits: the limits of each model's queue, by model name; in the order of the configuration.
        timeouts: the longest time of a request in seconds, by model name.
        labels: the version that each label stands for, by model name; only models with labels.
        dispatch: the rule that chooses the worker of a batch.
        unloaded: models that are configured but not loaded.
        waiting: what is configured but not there yet.
        waiting_models: the models of these, without a version.
    """

    config: Config
    devices: tuple[Device, ...]
    placements: tuple[Placement, ...]
    worker_settings: WorkerSettings
    limits: dict[str, QueueLimits]
    timeouts: dict[str, float]
    labels: dict[str, dict[str, str]]
    dispatch: Rule
    unloaded: tuple[ModelSpec, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    waiting_models: tuple[ModelSpec, ...] = ()

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """All configured models, loaded or not, in the order of the configuration."""
        return _in_order([*self.worker_settings.models, *self.unloaded, *self.waiting_models], self.limits)

    def _not_waiting_for(self, names: Collection[str]) -> Settings:
        return replace(
            self,
            waiting=tuple(entry for entry in self.waiting if entry.name not in names),
            waiting_models=tuple(spec for spec in self.waiting_models if spec.name not in names),
        )

    def find_model(self, name: str) -> tuple[ModelSpec, ...] | Waiting:
        """Returns the versions of a model that is waited for, or why it cannot be loaded yet.

        Reads the model's folder and no other, which may block: call it in a thread, not in the event loop.

        Args:
            name: the model's name.
        """
        model = next(model for model in self.config.models if model.name == name)
        found = _find_versions(model, self.config.folder)
        if isinstance(found, str):
            return Waiting(MODEL, name, found)
        missing = next((entry for entry in self.waiting if entry.kind == DEVICES), None)
        if missing is not None and not any(name in placement.models for placement in self.placements):
            return without_devices(name, missing)
        return tuple(found)

    def with_arrived(self, specs: Sequence[ModelSpec]) -> Settings:
        """Returns these settings with models that have arrived.

        Args:
            specs: the versions of these models.
        """
        loaded = _in_order([*self.worker_settings.models, *specs], self.limits)
        return replace(
            self._not_waiting_for({spec.name for spec in specs}),
            worker_settings=replace(self.worker_settings, models=loaded),
        )

    def with_devices(self, found: Settings, names: Collection[str]) -> Settings:
        """Returns these settings with devices that have arrived, and the models that waited for them.

        Args:
            found: settings of the same configuration that were built later.
            names: the models.
        """
        arrived = [spec for spec in found.worker_settings.models if spec.name in names]
        new = self._not_waiting_for((DEVICES,)).with_arrived(arrived)
        still = tuple(entry for entry in found.waiting if entry.kind == DEVICES)
        known = {entry.name: entry for entry in found.waiting}
        workers = found.worker_settings
        return replace(
            new,
            devices=found.devices,
            placements=found.placements,
            worker_settings=replace(
                new.worker_settings, spares=workers.spares, spare_environment=workers.spare_environment
            ),
            waiting=(*still, *(known.get(entry.name, entry) for entry in new.waiting)),
        )

    def with_model_unloaded(self, name: str) -> Settings:
        """Returns these settings with one model unloaded."""
        out = tuple(spec for spec in self.worker_settings.models if spec.name == name)
        out += tuple(spec for spec in self.waiting_models if spec.name == name)
        models = tuple(spec for spec in self.worker_settings.models if spec.name != name)
        return replace(
            self._not_waiting_for((name,)),
            unloaded=self.unloaded + out,
            worker_settings=replace(self.worker_settings, models=models),
        )

    def keeping_loaded(self, names: Collection[str]) -> Settings:
        """Returns these settings with the named models loaded, even where `load_at_startup` is false."""
        unloaded = tuple(spec for spec in self.unloaded if spec.name not in names)
        others = (*unloaded, *self.waiting_models)
        models = tuple(spec for spec in self.models if spec not in others)
        return replace(self, unloaded=unloaded, worker_settings=replace(self.worker_settings, models=models))

    def keeping_served(self, old: Settings) -> Settings:
        """Returns these settings with the versions that older ones serve of models whose files have gone since.

        Their workers have loaded them; the files may come back. Only models with the same path are kept.
        """
        paths = {model.name: model.path for model in old.config.models}
        configs = {model.name: model for model in self.config.models}
        kept: list[ModelSpec] = []
        for entry in self.waiting:
            if entry.kind != MODEL or entry.for_devices or paths.get(entry.name) != configs[entry.name].path:
                continue
            spec = _spec_of(configs[entry.name], self.config.folder)
            kept += [
                replace(spec, version=served.version, fingerprint=served.fingerprint)
                for served in old.worker_settings.models
                if served.name == entry.name
            ]
        return self.with_arrived(kept)

    def with_model_loaded(self, model: ModelConfig) -> Settings:
        """Returns these settings with one model loaded; it is added, or replaces the model of the same name.

        Reads the model's folder, which may block: call it in a thread, not in the event loop.

        Raises:
            DeviceError: the model names a device that the daemon does not have, or leaves a device without a model.
            OSError: the model's folder cannot be read.
        """
        name, known = model.name, {other.name: other for other in self.config.models}
        configs = tuple((known | {name: model}).values())
        limits = {**self.limits, name: _limits(model)}
        others = [spec for spec in self.worker_settings.models if spec.name != name]
        loaded = _in_order([*others, *_version_specs(model, self.config.folder)], limits)
        selections = {config.name: config.devices for config in configs}
        assigned = assign_models(selections, [placement.devices for placement in self.placements], self.devices)
        return replace(
            self._not_waiting_for((name,)),
            config=self.config.model_copy(update={"models": configs}),
            placements=tuple(
                replace(placement, models=models) for placement, models in zip(self.placements, assigned, strict=True)
            ),
            worker_settings=replace(
                self.worker_settings,
                models=loaded,
                execution_s={**self.worker_settings.execution_s, name: model.max_execution_time},
                load_s={**self.worker_settings.load_s, name: model.load_timeout or self.config.load_timeout},
            ),
            limits=limits,
            timeouts={**self.timeouts, name: model.queue.timeout},
            labels={**self.labels, name: _labels(model)},
            unloaded=tuple(spec for spec in self.unloaded if spec.name != name),
        )

    def without_models(self, names: Collection[str]) -> Settings:
        """Returns these settings without some models, as if the configuration did not have them."""
        kept = [model for model in self.config.models if model.name not in names]
        return replace(
            self._not_waiting_for(names),
            config=self.config.model_copy(update={"models": tuple(kept)}),
            placements=tuple(
                replace(placement, models=tuple(name for name in placement.models if name not in names))
                for placement in self.placements
            ),
            worker_settings=replace(
                self.worker_settings,
                models=tuple(spec for spec in self.worker_settings.models if spec.name not in names),
            ),
            limits={name: limits for name, limits in self.limits.items() if name not in names},
            timeouts={name: timeout for name, timeout in self.timeouts.items() if name not in names},
            labels={name: labels for name, labels in self.labels.items() if name not in names},
            unloaded=tuple(spec for spec in self.unloaded if spec.name not in names),
        )

    def with_versions(self, name: str, versions: Mapping[str, str]) -> Settings:
        """Returns these settings with other versions of one model.

        Args:
            name: the model's name.
            versions: the fingerprint of each version to serve, by version; see `multitower.model_files`. A model
                without numbered versions has `ONLY_VERSION`.
        """
        specs: list[ModelSpec] = []
        present = [spec for spec in self.worker_settings.models if spec.name == name]
        numbered = not any(spec.version is None for spec in present)
        for model in self.config.models:
            if model.name == name:
                spec = _spec_of(model, self.config.folder)
                specs += [
                    replace(spec, version=version if numbered else None, fingerprint=found)
                    for version, found in versions.items()
                ]
            else:
                specs += [spec for spec in self.worker_settings.models if spec.name == model.name]
        return replace(self, worker_settings=replace(self.worker_settings, models=tuple(specs)))

    def warn_about_missing_versions(self) -> None:
        """Logs a warning for each version that is configured or labelled but not found in the model's folder."""
        not_loaded = {spec.name for spec in (*self.unloaded, *self.waiting_models)}
        for model in self.config.models:
            if model.name in not_loaded:
                continue
            served = [spec.key[1] for spec in self.worker_settings.models if spec.name == model.name]
            labels = {number: label for label, number in model.version_labels.items()}
            for number in {*model.versions.listed, *labels}:
                if number not in map(int, served):
                    event(
                        log,
                        logging.WARNING,
                        "configured version not found",
                        model=model.name,
                        version=number,
                        label=labels.get(number),
                        served=",".join(served),
                    )


class ActiveSettings:
    """The settings in force. A reload or an order replaces them; every other part only reads them.

    Args:
        settings: the settings that the daemon starts with.

    Attributes:
        current: the settings in force.
        models: every model and version that is configured or that a slot still has, in the order of the configuration.
    """

    def __init__(self, settings: Settings) -> None:
        self.current = settings
        self.models: Sequence[ModelSpec] = settings.models

    @property
    def model_names(self) -> list[str]:
        """The name of each model of `models`, once."""
        return list(dict.fromkeys(spec.name for spec in self.models))


def _in_order(specs: Iterable[ModelSpec], names: Iterable[str]) -> tuple[ModelSpec, ...]:
    """Returns specifications in the order of these model names; the versions of a model stay in theirs."""
    index_of = {name: index for index, name in enumerate(names)}
    return tuple(sorted(specs, key=lambda spec: index_of[spec.name]))


def build_settings(
    config: Config,
    claims: CoreClaims | None = None,
    *,
    strict: bool = False,
    only: Collection[str] | None = None,
    answer_s: float | None = None,
) -> Settings:
    """Resolves a configuration on this machine.

    Looks for devices and reads model folders, which may block: call it before the event loop runs, or in a thread.

    Args:
        config: the configuration.
        claims: what this daemon claims of the cores; None to bind workers whatever other daemons have claimed.
        strict: whether all of it must be there; otherwise `Settings.waiting` has what is not.
        only: the models whose folders are read; the settings have no versions of the others. None for all.
        answer_s: seconds that the file system of each model gets to answer, otherwise the model is not there yet; None
            for no limit.

    Raises:
        MissingDevicesError: if `strict`: a device is missing.
        DeviceError: a device cannot hold its workers or has no model, or a model names an unknown device.
        OSError: if `strict`: the files of a model are missing or cannot be read.
    """
    if strict:
        groups, present, missing = resolve(config.devices, discover()), config, None
    else:
        groups, present, missing = present_devices(config, discover())
    placements: tuple[Placement, ...] = ()
    if groups and claims is not None:
        placements = _claimed_placements(present, groups, claims)
    elif groups:
        placements = place_workers_on(present, groups)
    waiting = [missing] if missing is not None else []
    placed = {name for placement in placements for name in placement.models}
    specs: list[tuple[bool, ModelSpec]] = []
    models = [model for model in config.models if only is None or model.name in only]
    for model, found in zip(models, _find_all_versions(models, config.folder, answer_s), strict=True):
        lacking = None
        if missing is not None and model.name not in placed and not isinstance(found, str):
            lacking = without_devices(model.name, missing)
            found = lacking.cause
        if not isinstance(found, str):
            specs += [(model.load_at_startup, spec) for spec in found]
        elif not model.load_at_startup:
            specs.append((False, _spec_of(model, config.folder)))
        elif strict:
            raise OSError(f"model {model.name}: {found}")
        else:
            waiting.append(lacking or Waiting(MODEL, model.name, found))
    waits_for = {entry.name for entry in waiting if entry.kind == MODEL}
    return Settings(
        config=config,
        devices=tuple(device for group in groups for device in group),
        placements=placements,
        worker_settings=_worker_settings(config, tuple(spec for at_startup, spec in specs if at_startup), placements),
        limits={model.name: _limits(model) for model in config.models},
        timeouts={model.name: model.queue.timeout for model in config.models},
        labels={model.name: _labels(model) for model in config.models if model.version_labels},
        dispatch=Rule(config.dispatch),
        unloaded=tuple(spec for at_startup, spec in specs if not at_startup),
        waiting=tuple(waiting),
        waiting_models=tuple(_spec_of(model, config.folder) for model in config.models if model.name in waits_for),
    )


def _claimed_placements(config: Config, groups: Sequence[Group], claims: CoreClaims) -> tuple[Placement, ...]:
    """Returns the placements, on cores that no other daemon has claimed; and claims them."""
    limits = ProcessLimits()
    with claims.turn():
        taken = claims.taken() & limits.cores()
        placements = place_workers_on(config, groups, limits=limits, taken=taken)
        claims.claim(cores_to_claim(placements, limits))
    if taken and config.cores != "shared":
        message = "other daemons have bound their workers to some of the cores"
        ours = format_core_list(core for placement in placements for core in placement.cores)
        event(log, logging.WARNING, message, cores=format_core_list(taken), ours=ours or "workers are not bound")
    return placements


def _worker_settings(
    config: Config, models: tuple[ModelSpec, ...], placements: tuple[Placement, ...]
) -> WorkerSettings:
    return WorkerSettings(
        models=models,
        execution_s={model.name: model.max_execution_time for model in config.models},
        policy=RestartPolicy(
            max_restarts=config.restart.max_restarts,
            window_s=config.restart.window,
            first_s=config.restart.backoff.first,
            max_s=config.restart.backoff.max,
        ),
        load_s={model.name: model.load_timeout or config.load_timeout for model in config.models},
        start_s=config.load_timeout,
        slow_load_s=config.slow_load or math.inf,
        spares=config.spares if placements else 0,  # they need the environment of a slot
        heartbeat_s=config.heartbeat,
        spare_environment=spare_environment(placements) if placements else {},
        max_requests=config.max_requests or None,
        max_rss=config.max_rss,
    )


def _limits(model: ModelConfig) -> QueueLimits:
    return QueueLimits(
        max_size=model.queue.max_size,
        max_bytes=model.queue.max_bytes,
        max_delay_s=model.batching.max_queue_delay if model.batching is not None else 0.0,
        retry=model.retry,
        quarantine_s=model.quarantine,
        sizes=model.batching.allowed_batch_sizes if model.batching is not None else (),
    )


def _labels(model: ModelConfig) -> dict[str, str]:
    return {label: str(number) for label, number in model.version_labels.items()}


def _spec_of(model: ModelConfig, folder: Path) -> ModelSpec:
    """Returns the specification of a model, without a version, in a configuration of this folder."""
    return replace(model.to_spec(), module_folder=str(folder) if model.handler is not None else None)


def _find_all_versions(
    models: Sequence[ModelConfig], folder: Path, answer_s: float | None
) -> list[list[ModelSpec] | str]:
    """Returns for each model what `_find_versions` does, or that its file system does not answer.

    Args:
        models: the models.
        folder: of their configuration.
        answer_s: seconds that file systems get to answer, all at the same time; None for no limit.
    """
    if answer_s is None:
        return [_find_versions(model, folder) for model in models]
    found: list[list[ModelSpec] | str] = []
    outcomes = call_all_within(answer_s, [partial(_find_versions, model, folder) for model in models])
    for model, outcome in zip(models, outcomes, strict=True):
        if isinstance(outcome, TimeoutError):
            found.append(f"{model.path} cannot be read: its file system gave {outcome}")
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            found.append(outcome)
    return found


def _find_versions(model: ModelConfig, folder: Path) -> list[ModelSpec] | str:
    """Returns what `_version_specs` does, or why the files of the model cannot be loaded now, for people.

    Args:
        model: the model.
        folder: of its configuration.
    """
    cause = why_absent(model, folder)
    if cause is not None:
        return cause
    try:
        return _version_specs(model, folder)
    except OSError as error:
        return f"{error.filename or model.path} cannot be read: {error.strerror or error}"


def _version_specs(model: ModelConfig, folder: Path) -> list[ModelSpec]:
    """Returns one specification for each version of the model that is to be served.

    Args:
        model: the model.
        folder: of its configuration.
    """
    spec = _spec_of(model, folder)
    versions = chosen_versions(spec.path, model.versions) if spec.path is not None else (None,)
    specs = [replace(spec, version=version) for version in versions]
    return [replace(spec, fingerprint=fingerprint(spec)) for spec in specs]
