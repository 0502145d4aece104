"""The settings of each experiment. What a field means is said where its section is declared (`cdisc.app.config`)."""
