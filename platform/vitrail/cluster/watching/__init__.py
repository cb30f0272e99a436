"""What shows how runs, jobs and machines are doing: a screen, Ray metrics, and a dashboard of them."""
