"""Devices: profiles with units and sources, operating points, and the map of tensors to devices."""

from __future__ import annotations

from ckptguard.devices.analog import AnalogProfile, analog_profiles, load_analog_profile
from ckptguard.devices.device import Device
from ckptguard.devices.map import DeviceMap
from ckptguard.devices.profile import GROUPS, Profile, load_profile, profiles
from ckptguard.devices.sheet import Parameter

__all__ = [
    "GROUPS",
    "AnalogProfile",
    "Device",
    "DeviceMap",
    "Parameter",
    "Profile",
    "analog_profiles",
    "load_analog_profile",
    "load_profile",
    "profiles",
]
