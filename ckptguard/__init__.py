"""ckptguard keeps model checkpoints alive on storage that flips bits."""

__version__ = "0.1.0"
