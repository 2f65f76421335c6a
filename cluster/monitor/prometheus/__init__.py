"""Prometheus and Grafana for the metrics that processes serve: scrape configuration, rules, dashboards, a server."""
