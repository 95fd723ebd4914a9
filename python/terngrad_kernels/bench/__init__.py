"""How the kernels stand here against the limit of the hardware and against what one would use instead.

``python -m terngrad_kernels bench`` (``command``) measures the cases of ``cases`` and the other implementations of
``peers`` with ``measure``, and shows them with ``report`` and ``page``. Nothing of it is
imported before it is asked for.
"""
