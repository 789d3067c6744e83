job "api" {
  type = "service"

  update {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "5s"
    healthy_deadline = "2m"
    auto_revert      = true
  }

  group "api" {
    count = 2

    network {
      port "http" { to = 8000 }
      port "admin" { to = 9000 }
    }

    service {
      name     = "api"
      port     = "http"
      provider = "nomad"

      # Hung workers are procmgr's to replace: no check_restart.
      check {
        type     = "http"
        port     = "admin"
        path     = "/readyz"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "api" {
      driver = "docker"

      # --shutdown-delay + --graceful-timeout + 5 s have to fit: a client's max_kill_timeout is 30 s unless it is raised.
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      config {
        image           = "registry.example/api:1"
        ports           = ["http", "admin"]
        args            = ["--workers=2", "--shutdown-delay=5", "--graceful-timeout=15", "app:app"]
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]

        mount {
          type   = "tmpfs"
          target = "/tmp"
        }
      }

      resources {
        cores  = 2
        memory = 512
      }
    }
  }
}
