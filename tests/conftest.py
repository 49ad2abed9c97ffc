"""What holds for all tests: on a busy machine hypothesis must not take slowness for a fault, and Ctrl-C is heard."""

import signal

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# in the background of a shell, or under nohup, it is ignored, and what a process ignores stays ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
