"""From the configuration to what each part of the daemon is told; a reload goes the same way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from multitower.spec import ModelSpec
from multitower.supervisor import placement
from multitower.supervisor.batching import QueueLimits
from multitower.supervisor.config import Config, ModelConfig
from multitower.supervisor.devices import Device, resolve
from multitower.supervisor.discovery import discover
from multitower.supervisor.fleet_settings import FleetSettings
from multitower.supervisor.log import event
from multitower.supervisor.pool import Rule
from multitower.supervisor.restart import RestartPolicy
from multitower.supervisor.versions import chosen_versions, fingerprint

log = logging.getLogger("multitower.daemon")


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration made concrete on this machine: devices resolved, versions chosen.

    Attributes:
        config: what it was made of.
        devices: the daemon's.
        placements: one for each slot, numbered from 0.
        fleet: what the fleet is told.
        limits: of each model's queue.
        timeouts: seconds that a request to each model may take.
        labels: of each model that has some, the versions that they stand for.
        dispatch: the rule by which workers get batches.
    """

    config: Config
    devices: tuple[Device, ...]
    placements: tuple[placement.Placement, ...]
    fleet: FleetSettings
    limits: dict[str, QueueLimits]
    timeouts: dict[str, float]
    labels: dict[str, dict[str, str]]
    dispatch: Rule

    def with_versions(self, name: str, versions: Mapping[str, str]) -> Settings:
        """The same with other versions of a model.

        Args:
            name: the model's.
            versions: which are to be served, each with its `versions.fingerprint`.
        """
        specs: list[ModelSpec] = []
        for model in self.config.models:
            if model.name == name:
                spec = model.to_spec()
                specs += [replace(spec, version=version, fingerprint=print_) for version, print_ in versions.items()]
            else:
                specs += [spec for spec in self.fleet.models if spec.name == model.name]
        return replace(self, fleet=replace(self.fleet, models=tuple(specs)))

    def warn_of_versions(self) -> None:
        """Tells the log of versions that are listed or have a label, but are not there."""
        for model in self.config.models:
            served = [spec.key[1] for spec in self.fleet.models if spec.name == model.name]
            labels = {number: label for label, number in model.version_labels.items()}
            for number in {*model.versions.listed, *labels}:
                if number not in map(int, served):
                    told = {
                        "model": model.name,
                        "version": number,
                        "label": labels.get(number),
                        "served": ",".join(served),
                    }
                    event(log, logging.WARNING, "a version is not there", **told)


def make(config: Config) -> Settings:
    """Looks at devices and folders, and may wait for them: not for the daemon's loop.

    Raises:
        DeviceError: a device is not to be had, cannot hold its workers, or has no model; or a model is for another.
        OSError: a model's folder cannot be read.
    """
    groups = resolve(config.devices, discover())
    return Settings(
        config=config,
        devices=tuple(device for group in groups for device in group),
        placements=placement.of_groups(config, groups),
        fleet=FleetSettings(
            models=tuple(spec for model in config.models for spec in _pinned(model)),
            execution_s={model.name: model.max_execution_time for model in config.models},
            policy=RestartPolicy(
                max_restarts=config.restart.max_restarts,
                window_s=config.restart.window,
                first_s=config.restart.backoff.first,
                max_s=config.restart.backoff.max,
            ),
            spares=config.spares,
            heartbeat_s=config.heartbeat,
            max_requests=config.max_requests or None,
            max_rss=config.max_rss,
        ),
        limits={model.name: _limits(model) for model in config.models},
        timeouts={model.name: model.queue.timeout for model in config.models},
        labels={
            model.name: {label: str(number) for label, number in model.version_labels.items()}
            for model in config.models
            if model.version_labels
        },
        dispatch=Rule(config.dispatch),
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


def _pinned(model: ModelConfig) -> list[ModelSpec]:
    """The model as workers are told of it, once for each version that is to be served."""
    spec = model.to_spec()
    if spec.path is None:
        return [spec]
    return [
        replace(spec, version=version, fingerprint=fingerprint(spec.path, version))
        for version in chosen_versions(spec.path, model.versions)
    ]
