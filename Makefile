# Builds and installs the three programs with their manual pages and shell completions.
#
#   make && sudo make install                     into /usr/local
#   make install PREFIX=$HOME/.local              for one user
#   make install PREFIX=/usr DESTDIR=package      for a package
#
# PROFILE=dist optimises further and builds longer.

PREFIX = /usr/local
PROFILE = release
CARGO = cargo
target = $(or $(CARGO_TARGET_DIR),target)
built = $(target)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
programs = forebay forebay-worker forebay-load
root = $(DESTDIR)$(PREFIX)

all:
	$(CARGO) build --locked --workspace --bins --profile $(PROFILE)

# Builds nothing, so that no file of root's is left in the working tree.
install:
	install -d $(root)/bin $(root)/share
	install -m 755 $(programs:%=$(built)/%) $(root)/bin
	for program in $(programs); do $(built)/$$program --generate $(root)/share || exit 1; done

uninstall:
	rm -f $(programs:%=$(root)/bin/%) $(programs:%=$(root)/share/man/man1/%*.1) \
	    $(programs:%=$(root)/share/bash-completion/completions/%) $(programs:%=$(root)/share/zsh/site-functions/_%) \
	    $(programs:%=$(root)/share/fish/vendor_completions.d/%.fish)

.PHONY: all install uninstall
