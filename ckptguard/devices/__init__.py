"""Devices: profiles with units and sources, operating points, and the map of tensors to devices."""

from __future__ import annotations

from ckptguard.devices.device import Device
from ckptguard.devices.map import DeviceMap
from ckptguard.devices.profile import GROUPS, Parameter, Profile, load_profile, profiles

__all__ = ["GROUPS", "Device", "DeviceMap", "Parameter", "Profile", "load_profile", "profiles"]
