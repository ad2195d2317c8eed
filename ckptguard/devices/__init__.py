"""Devices: profiles with units and sources, operating points, and the map of tensors to devices."""

from __future__ import annotations

from ckptguard.devices.device import Device
from ckptguard.devices.map import DeviceMap
from ckptguard.devices.profile import Parameter, Profile, Term, load_profile, profiles

__all__ = ["Device", "DeviceMap", "Parameter", "Profile", "Term", "load_profile", "profiles"]
