"""The engines that Parley stands on, on this machine: Kafka, ScyllaDB (or Cassandra in its place) and Consul.

Owns how they are fetched, checked, configured, started, watched and stopped: by Docker Compose where Docker is, else natively with
Java, Maven and Go. Promises that whatever is called ready answers real requests, that data and processes of one folder belong
together, and that no process is ended which it did not start. Never used in production, and no service imports it.
"""
