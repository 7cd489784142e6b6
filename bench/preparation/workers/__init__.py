"""The same preparation in other libraries; each runs in an environment of its own, without anything of ours."""
