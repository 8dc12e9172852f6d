"""From the configuration to what each part of the daemon is told; a reload goes the same way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from multitower.spec import ModelSpec
from multitower.supervisor import placement
from multitower.supervisor.batching import QueueLimits
from multitower.supervisor.config import Config, ModelConfig
from multitower.supervisor.devices import Device, resolve
from multitower.supervisor.discovery import discover
from multitower.supervisor.fleet_settings import FleetSettings
from multitower.supervisor.pool import Rule
from multitower.supervisor.restart import RestartPolicy
from multitower.supervisor.versions import fingerprint, latest_version


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
        dispatch: the rule by which workers get batches.
    """

    config: Config
    devices: tuple[Device, ...]
    placements: tuple[placement.Placement, ...]
    fleet: FleetSettings
    limits: dict[str, QueueLimits]
    timeouts: dict[str, float]
    dispatch: Rule


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
            models=tuple(_pin_version(model.to_spec()) for model in config.models),
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


def _pin_version(spec: ModelSpec) -> ModelSpec:
    if spec.path is None:
        return spec
    version = latest_version(spec.path)
    return dataclasses.replace(spec, version=version, fingerprint=fingerprint(spec.path, version))
