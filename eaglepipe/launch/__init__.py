"""`eaglepipe launch`: a stage on many machines, by whoever schedules them: Slurm, Ray, or this machine alone.

A task is a plain process, `eaglepipe precompute RECIPE --workers i/n`, and a scheduler only has to start it, to pass
signals on and to start it again. What is done is what is published: shards are the only markers, and a task that starts
again goes on with those of its share that are missing. Executors with a model of their own do not fit that. Those of
datatrove run pickled pipelines and skip whole tasks by markers of theirs, which would outlive shards that were lost or
damaged; submitit pickles functions, and its checkpoints are objects. `sbatch` takes a script that can be read before it
is sent, and `ray` is asked for processes and nothing else.
"""
