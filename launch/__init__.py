"""Jobs on a cluster: submitted through submitit, started with accelerate, restarted until they are done."""
