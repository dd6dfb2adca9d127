"""The composition roots, one per process: the only modules that import every layer they put together.

Nothing connects when they are imported. ``uvicorn --factory runwire.bootstrap.adapter:adapter_app`` and
``faststream run --factory runwire.bootstrap.worker:worker_app`` work as well as ``runwire adapter`` and
``runwire worker``.
"""
