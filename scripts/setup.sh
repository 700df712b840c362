#!/bin/sh
# Installs what the stack and its tests need and this machine lacks. Says what and why first; silent when nothing is missing.
#   scripts/setup.sh          what `make run` needs
#   scripts/setup.sh test     also what only tests need
set -eu
cd "$(dirname "$0")/.."

versitygw=v1.8.0

die() { printf '%s\n' "$@" >&2; exit 1; }

# Go is the one thing that is not installed here: its version belongs to whoever owns the machine.
want=$(sed -n 's/^go //p' go.mod)
command -v go >/dev/null 2>&1 || die "Go is missing. Install Go $want or newer from https://go.dev/dl/ and put its bin folder into PATH."
have=$(go env GOVERSION 2>/dev/null | sed 's/^go//; s/[^0-9.].*//')
oldest=$(printf '%s\n%s\n' "$want" "$have" | sort -t. -k1,1n -k2,2n -k3,3n | head -n 1)
[ -n "$have" ] && [ "$oldest" = "$want" ] ||
	die "Go ${have:-of an unknown version} is older than go.mod asks for ($want). Install a newer one from https://go.dev/dl/."

missing=
# need PACKAGE PRESENT? WHY
need() {
	missing="$missing $1"
	reasons="${reasons:-}  $1: $2
"
}
has() { command -v "$1" >/dev/null 2>&1; }
anyfile() { [ -e "$1" ]; }

case "$(uname -s)" in
Linux)
	has postgres || anyfile /usr/lib/postgresql/*/bin/postgres || need postgresql 'the database; a private cluster is started from its programs'
	has WebKitWebDriver || need webkit2gtk-driver 'a real WebKit to drive, in the place of an iPhone'
	has Xvfb || need xvfb 'a display for each browser'
	has ffmpeg && has ffprobe || need ffmpeg 'records the screen, and checks recordings'
	has git || need git 'go install and the tests read the repository'
	if [ "${1:-}" = test ]; then
		if ! has cc && ! has gcc; then
			need gcc 'the race detector, which the tests run under, links with it'
			need libc6-dev 'likewise'
		fi
		has chromium || need chromium 'a browser with WebDriver BiDi, which Safari does not have'
		has chromedriver || need chromium-driver 'drives it'
		has ip || need iproute2 'network namespaces, where the tests of the TUN tunnel run as root'
		has nft || anyfile /usr/sbin/nft || need nftables 'these tests take the rules away that keep hosts apart, and read them'
		if ! has node; then
			need nodejs 'runs the scripts of test/selenium, test/webdriverio and test/playwright with unmodified npm packages'
			has npm || need npm 'installs selenium-webdriver, webdriverio and playwright-core'
		elif ! has npm; then
			need npm 'installs selenium-webdriver, webdriverio and playwright-core'
		fi
	fi
	if [ -n "$missing" ]; then
		has apt-get || die "These Debian packages are missing, and there is no apt-get here. Install what they hold with your system's tools:" "$reasons"
		sudo=
		if [ "$(id -u)" != 0 ]; then
			has sudo || die "These Debian packages are missing. Become root and run: apt-get install$missing" "$reasons"
			sudo=sudo
		fi
		printf 'Installing with apt-get%s:\n%s' "${sudo:+ (sudo may ask for your password)}" "$reasons"
		# A service that Debian starts for postgresql is neither needed nor used.
		$sudo env DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null ||
			die 'apt-get update failed: see above.'
		# shellcheck disable=SC2086 # one word a package
		$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >/dev/null ||
			die 'apt-get install failed: see above.'
	fi
	;;
Darwin)
	has postgres || anyfile /opt/homebrew/opt/postgresql@*/bin/postgres || anyfile /usr/local/opt/postgresql@*/bin/postgres ||
		need postgresql@15 'the database; a private cluster is started from its programs'
	has ffmpeg || need ffmpeg 'records the screen, and checks recordings'
	[ "${1:-}" != test ] || has node || need node 'runs the scripts of test/selenium, test/webdriverio and test/playwright with unmodified npm packages'
	if [ -n "$missing" ]; then
		has brew || die 'These are missing. Install them, for example with Homebrew (https://brew.sh):' "$reasons"
		printf 'Installing with Homebrew:\n%s' "$reasons"
		# shellcheck disable=SC2086
		brew install -q $missing || die 'brew install failed: see above.'
	fi
	;;
*) die "$(uname -s) is not supported: use Debian 12 or newer, or macOS." ;;
esac

if [ ! -x bin/versitygw ]; then
	echo "Building versitygw $versitygw into bin/ (object storage for the stack and the tests; takes a minute or two) …"
	GOBIN="$PWD/bin" go install "github.com/versity/versitygw/cmd/versitygw@$versitygw"
fi

# npm_test FOLDER PACKAGE: the package's own install scripts would download browsers and drivers that are not used here.
npm_test() {
	[ ! -d "test/$1/node_modules/$2" ] || [ "test/$1/package-lock.json" -nt "test/$1/node_modules" ] || return 0
	echo "Installing $2 into test/$1/node_modules (does what a customer would) …"
	(cd "test/$1" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && touch node_modules)
}
if [ "${1:-}" = test ]; then
	npm_test selenium selenium-webdriver
	npm_test webdriverio webdriverio
	npm_test playwright playwright-core
fi
