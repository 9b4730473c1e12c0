"""The room for app integration builds (Android, iOS, web, Linux). Nothing is here yet, and no command pretends so."""
