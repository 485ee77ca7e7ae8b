"""What the bundled model learns besides texts: dialogs made by seeded generators, a skill each."""
