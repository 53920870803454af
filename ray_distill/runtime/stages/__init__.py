"""Run one stage of a campaign on the cluster: from references and a config to a reference."""
