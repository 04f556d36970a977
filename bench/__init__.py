"""The benchmark: what one machine does with the station plane, and where the time goes (``make bench``)."""
