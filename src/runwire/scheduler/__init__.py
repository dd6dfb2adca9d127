"""Has tasks run when their triggers say: alarms in the broker, set by what EVENTS says, forwarded as commands.

::

    EVENTS --- setter ---> SCHEDULES  tasks.sch.*  (the broker's alarm clock)
                               |
                               v      tasks.due.*
                           forwarder ---> COMMANDS, the next alarm, skipped ticks into EVENTS

    reconciler: do the alarms fit the tasks? at the start, and now and then

Runs in every worker process; all of them share the work. No step needs to happen only once.
"""
