"""Who and where: receives requests as columns, hands them on with process, service, route and peer."""
