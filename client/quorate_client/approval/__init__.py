"""What people at a site decided: studies, data sets, policy, and what a study would cost."""
