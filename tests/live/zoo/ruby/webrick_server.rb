# WEBrick.  webrick_server.rb PORT
require "webrick"

tls = {}
if ENV["ZOO_TLS_KEY"]
  require "webrick/https"
  tls = {
    SSLEnable: true,
    SSLCertificate: OpenSSL::X509::Certificate.new(File.read(ENV["ZOO_TLS_CERTIFICATE"])),
    SSLPrivateKey: OpenSSL::PKey.read(File.read(ENV["ZOO_TLS_KEY"]))
  }
end

server = WEBrick::HTTPServer.new(
  BindAddress: "127.0.0.1", Port: ARGV[0].to_i, AccessLog: [], Logger: WEBrick::Log.new($stderr, WEBrick::Log::WARN),
  StartCallback: -> { puts "listening #{ARGV[0]}"; $stdout.flush },
  # head and body leave in two writes
  AcceptCallback: ->(socket) { socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1) },
  MaxClients: 512, **tls
)
server.mount_proc "/" do |request, response|
  _, page, argument = request.path.split("/")
  case page
  when "items" then response.body = %({"item":"#{argument}"}\n)
  when "fail"
    response.status = 500
    response.body = "failed\n"
  when "echo" then response.body = request.body.to_s
  when "sleep"
    sleep(argument.to_i / 1000.0)
    response.body = "slept\n"
  when "big" then response.body = "x" * argument.to_i
  when "stream"
    response.chunked = true
    response.body = lambda do |out|
      5.times do |piece|
        out.write("piece #{piece}\n")
        sleep 0.001
      end
    end
  else
    response.status = 404
    response.body = "no such page\n"
  end
end
trap("TERM") { server.shutdown }
server.start
