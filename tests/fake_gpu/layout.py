"""The memory that the fake libraries share with the tests, as state.h lays it out."""

from __future__ import annotations

import ctypes

UNITS_PER_DEVICE = 8


class Unit(ctypes.Structure):
    _fields_ = (
        ("present", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64),
        ("unseen", ctypes.c_uint64),
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
    )


class Device(ctypes.Structure):
    _fields_ = (
        ("mig", ctypes.c_int32),
        ("listing", ctypes.c_uint32),
        ("utilization", ctypes.c_uint32),
        ("memory_utilization", ctypes.c_uint32),
        ("temperature", ctypes.c_uint32),
        ("power_mw", ctypes.c_uint32),
        ("persistence", ctypes.c_uint32),
        ("compute_mode", ctypes.c_uint32),
    )


class Foreigner(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint32),
        ("unit", ctypes.c_uint32),
        ("bytes", ctypes.c_uint64),
        ("graphics", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )


class Holder(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint32),
        ("unit", ctypes.c_uint32),
        ("started", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("fate", ctypes.c_uint64),
    )


class Fault(ctypes.Structure):
    _fields_ = (
        ("active", ctypes.c_uint32),
        ("device", ctypes.c_int32),
        ("code", ctypes.c_int32),
        ("delay_ms", ctypes.c_uint32),
        ("left", ctypes.c_uint32),
        ("hits", ctypes.c_uint32),
        ("inside", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("function", ctypes.c_char * 64),
    )


class Event(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("type", ctypes.c_uint64),
        ("data", ctypes.c_uint64),
    )


class State(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("device_count", ctypes.c_uint32),
        ("context_bytes", ctypes.c_uint64),
        ("release_delay_ms", ctypes.c_uint32),
        ("cuda_version", ctypes.c_uint32),
        ("driver_version", ctypes.c_char * 80),
        ("nvml_version", ctypes.c_char * 80),
        ("event_count", ctypes.c_uint64),
        ("devices", Device * 16),
        ("units", Unit * (16 * UNITS_PER_DEVICE)),
        ("foreigners", Foreigner * 64),
        ("holders", Holder * 1024),
        ("faults", Fault * 32),
        ("events", Event * 64),
    )
