"""Campaigns: many corrupted copies of a model in memory, what they are worth, and what that proves."""
