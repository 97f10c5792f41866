"""Problems, alerts and metrics. This room reads the rest of the core and changes nothing."""
